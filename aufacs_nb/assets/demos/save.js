// A button that asks the kernel for a file, which the browser then saves. The page never says where it goes.
function render({ model, el }) {
  el.classList.add("aufacs-upload");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = model.get("description");
  button.addEventListener("click", () => model.send({ kind: "wanted" }));
  model.on("msg:custom", (message, buffers) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([buffers[0]], { type: message.type }));
    link.download = message.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  el.append(button);
}
export default { render };
