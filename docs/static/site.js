// What the theme leaves to be desired: the menu's arrows have names, and what scrolls can be reached by the keyboard.
document.addEventListener("DOMContentLoaded", () => {
  for (const arrow of document.querySelectorAll(".bd-sidenav summary")) {
    const page = arrow.closest("li").querySelector("a");
    arrow.setAttribute("aria-label", `Pages below ${page ? page.textContent.trim() : "this one"}`);
  }
  const reach = () => {
    for (const part of document.querySelectorAll(".cell_output .output, .cell_output table, .math, .highlight pre"))
      if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
  };
  reach();
  window.addEventListener("resize", reach);
});
