// Elements as every page finds, makes and fills them. All text goes in as text: a file or a patient
// may be called <script>.

export const at = (id) => document.getElementById(id);

/** An element with its text and children. */
export function made(tag, { text, className, ...more } = {}, ...children) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  for (const [name, value] of Object.entries(more)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Text in place of a frame; none takes it away. */
export function message(title = "", ...lines) {
  at("message").hidden = !title;
  at("message").replaceChildren(...[title, ...lines].filter(Boolean).map(
    (text, index) => made(index ? "p" : "h2", { text })));
}

/** A line above the buttons; `kind` "bad" for what did not work. */
export function notice(text = "", kind = "") {
  at("notice").hidden = !text;
  at("notice").textContent = text;
  at("notice").className = `notice ${kind}`;
}

/** Draw all of a bitmap in the middle of a canvas, as large as it fits. */
export function drawWhole(bitmap, canvas) {
  const scale = Math.min(canvas.width / bitmap.width, canvas.height / bitmap.height);
  const [width, height] = [bitmap.width * scale, bitmap.height * scale];
  canvas.getContext("2d").drawImage(bitmap, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
}

/** Show or hide a layer of the stage, as its button says. */
export function toggleLayer(stage, layer) {
  const button = at(`show${layer[0].toUpperCase()}${layer.slice(1)}`);
  if (button.hidden) return;
  stage.layers[layer] = !stage.layers[layer];
  button.setAttribute("aria-pressed", stage.layers[layer]);
  stage.render();
}
