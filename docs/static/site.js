// What the theme leaves to be desired: the menu's arrows have names, and what scrolls can be reached by the keyboard and
// fades at its right edge while there is more.
document.addEventListener("DOMContentLoaded", () => {
  for (const arrow of document.querySelectorAll(".bd-sidenav summary")) {
    const page = arrow.closest("li").querySelector("a");
    arrow.setAttribute("aria-label", `Pages below ${page ? page.textContent.trim() : "this one"}`);
  }
  const parts = document.querySelectorAll(
    ".pst-scrollable-table-container, .cell_output .output, .cell_output table, .math, .highlight pre");
  const fade = part => part.classList.toggle("more", part.scrollLeft + part.clientWidth < part.scrollWidth - 2);
  const reach = () => {
    for (const part of parts) {
      if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
      fade(part);
    }
  };
  for (const part of parts) part.addEventListener("scroll", () => fade(part), { passive: true });
  reach();
  window.addEventListener("resize", reach);
});
