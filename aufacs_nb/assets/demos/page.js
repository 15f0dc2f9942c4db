// What ipywidgets leaves without a name gets one, for screen readers; and a sign shows while the kernel works.
const words = (e) => (e ? e.textContent.replace(/\s+/g, " ").trim() : "");

// The title above a widget: the first text in the nearest box around it.
function titleOf(e) {
  for (let box = e.parentElement; box && !box.classList.contains("aufacs"); box = box.parentElement) {
    const first = box.querySelector(":scope > .widget-html, :scope > .jupyter-widgets.widget-html");
    if (first && box.firstElementChild === first && !first.contains(e) && words(first)) return words(first);
  }
  return "";
}

const labelOf = (e) => words(e.closest(".jupyter-widgets")?.querySelector(".widget-label"));

// The head of a part that unfolds: Tab reaches it, Enter and the space bar press it, and it says whether it is open.
function byKey(e) {
  if (e.tabIndex < 0) {
    e.tabIndex = 0;
    e.setAttribute("role", "button");
    e.setAttribute("aria-label", words(e)); // without the arrow before it, which is a letter of a font
    e.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      e.click();
    });
  }
  const open = String(e.closest(".jupyter-widget-Collapse").classList.contains("jupyter-widget-Collapse-open"));
  if (e.getAttribute("aria-expanded") !== open) e.setAttribute("aria-expanded", open);
}

function nameAll(root) {
  for (const e of root.querySelectorAll(".noUi-handle, select, input, [contenteditable], .jupyter-widgets.progress")) {
    const name = labelOf(e) || titleOf(e);
    if (name && e.getAttribute("aria-label") !== name) e.setAttribute("aria-label", name);
  }
  for (const e of root.querySelectorAll("[contenteditable]")) {
    e.setAttribute("role", "textbox");
    const name = `${labelOf(e) || titleOf(e)}, value`;
    if (e.getAttribute("aria-label") !== name) e.setAttribute("aria-label", name);
  }
  for (const e of root.querySelectorAll("img.jupyter-widgets")) {
    const name = titleOf(e) || "picture";
    if (e.alt !== name) e.alt = name;
  }
  for (const e of root.querySelectorAll(".aufacs-wide:not([tabindex])")) e.tabIndex = 0;
  for (const e of root.querySelectorAll(".aufacs-message:not([role])")) e.setAttribute("role", "status");
  for (const e of root.querySelectorAll(".jupyter-widget-Collapse-header")) byKey(e);
  for (const e of root.querySelectorAll(".widget-toggle-buttons > .widget-toggle-button, .widget-toggle-buttons button")) {
    const pressed = String(e.classList.contains("mod-active"));
    if (e.getAttribute("aria-pressed") !== pressed) e.setAttribute("aria-pressed", pressed);
  }
}

function render({ model, el }) {
  el.innerHTML = '<div class="aufacs-busy" role="status" hidden>working …</div>';
  const sign = el.firstElementChild;
  const show = () => (sign.hidden = model.get("busy") === 0);
  model.on("change:busy", show);
  show();
  let waiting = false;
  const look = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const root = el.closest(".aufacs");
      if (root) nameAll(root);
    });
  };
  const watch = new MutationObserver(look);
  watch.observe(document.body, { subtree: true, childList: true, characterData: true,
                                 attributes: true, attributeFilter: ["class"] });
  look();
  return () => watch.disconnect();
}
export default { render };
