// A button that sends one file to the kernel, if it is not too large. The kernel keeps it in memory only.
function render({ model, el }) {
  el.classList.add("aufacs-upload");
  const button = document.createElement("button"), input = document.createElement("input");
  const said = document.createElement("span");
  button.type = "button";
  said.setAttribute("role", "status");
  input.type = "file";
  input.hidden = true;
  const label = () => {
    button.textContent = model.get("description");
    input.accept = model.get("accept");
    said.textContent = model.get("said");
  };
  model.on("change", label);
  label();
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", async () => {
    const file = input.files[0], most = model.get("most");
    if (!file) return;
    if (file.size > most) {
      said.textContent = `${file.name}: ${(file.size / 1e6).toFixed(0)} MB; at most ${most / 1e6} MB are taken.`;
    } else {
      said.textContent = `${file.name}: sending …`;
      model.send({ name: file.name, type: file.type, size: file.size }, undefined, [await file.arrayBuffer()]);
    }
    input.value = "";
  });
  el.append(button, input, said);
}
export default { render };
