// The dialog that asks for a reason: a number picks one of the list, letters begin one of one's own.

import { at } from "./elements.js";

export function askReason() {
  at("otherReason").value = "";
  at("reasons").showModal();
  at("reasonList").querySelector("button").focus();
}

/** `take(reason)` is called when one is chosen. */
export function connectReasons(take) {
  const chosen = (reason) => {
    if (!reason.trim()) return at("otherReason").focus();
    at("reasons").close();
    take(reason);
  };
  const buttons = at("reasonList").querySelectorAll("button");
  for (const button of buttons) button.addEventListener("click", () => chosen(button.lastChild.data));
  at("reasons").addEventListener("keydown", (event) => {
    if (event.target.id === "otherReason" || event.ctrlKey || event.metaKey) return;
    const button = buttons[Number(event.key) - 1];
    if (button) {
      event.preventDefault();
      button.click();
    } else if (/^\p{L}$/u.test(event.key)) at("otherReason").focus(); // the letter lands there
  });
  at("reasons").querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    chosen(at("otherReason").value);
  });
  at("reasonCancel").addEventListener("click", () => at("reasons").close());
}
