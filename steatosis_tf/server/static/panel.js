// What stands beside the frame under review, and which key and which button does what. The keyboard
// sheet in review.html says the same.

import { at, notice, toggleLayer } from "./elements.js";
import { askReason, connectReasons } from "./reasons.js";

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const BIG_STEP_PX = 10;
// Keys that make sense when held down; a held A must not accept frame after frame.
const REPEATING = new Set([...Object.keys(ARROWS), "n", "p", "PageDown", "PageUp", "+", "=", "-"]);

export const STATE_NAMES = {
  "": "To review", accepted: "Accepted", corrected: "Corrected", rejected: "Rejected",
};

/** How far the review is, as the server has just said. */
export function progress({ counts, fold_error: foldError }) {
  const done = counts.all - counts.to_review;
  at("progress").textContent = `${done} of ${counts.all} reviewed`;
  at("meter").setAttribute("aria-valuenow", done);
  at("meter").setAttribute("aria-valuemax", counts.all);
  for (const name of ["accepted", "corrected", "rejected"])
    at("meter").querySelector(`.${name}`).style.width = `${100 * counts[name] / counts.all}%`;
  for (const option of at("filter").options) {
    option.dataset.name ??= option.textContent.trim();
    option.textContent = `${option.dataset.name} (${counts[option.value]})`;
  }
  if (foldError) notice(`Decisions are safe in the store, but the manifest lags: ${foldError}`, "bad");
}

/** Everything in the panel, from the state of the page; `current` is the box as it stands. */
export function showPanel({ row, edit, ready, busy, steps, undos, order }, current, isDrawing) {
  const decided = Boolean(row?.state);
  if (document.activeElement !== at("number")) at("number").value = row ? row.rank + 1 : "";
  at("total").textContent = row ? `of ${row.total}` : "";
  at("state").textContent = row ? (edit ? "Unsaved change" : STATE_NAMES[row.state]) : "";
  at("state").className = `state ${edit ? "changed" : row?.state ?? ""}`;
  at("id").textContent = row?.frame_id ?? "";
  at("patient").textContent = row?.patient_id ?? "";
  at("signed").textContent = decided ? `by ${row.reviewer}, ${when(row.reviewed_at)}` : "";
  at("quality").textContent = row ? row.quality?.toFixed(2) ?? "–" : "";
  at("qualityBar").style.width = `${100 * (row?.quality ?? 0)}%`;
  at("reason").textContent = row?.reason || (row && !row.box && !decided ? "No proposal" : "");
  at("numbers").hidden = Boolean(row?.fan);
  for (const input of at("numbers").querySelectorAll("input")) {
    if (document.activeElement !== input) input.value = current?.[input.dataset.side] ?? "";
    input.disabled = !ready;
    input.removeAttribute("aria-invalid");
  }
  const can = {
    accept: ready && !edit && current && row.state !== "accepted",
    correct: ready && edit,
    reject: row,
    undo: steps.length || undos.length || (row && row.num_decisions > 0),
    reopen: row && row.num_decisions > 0,
    previous: row,
    next: row,
  };
  for (const [name, possible] of Object.entries(can)) at(name).disabled = busy || !possible;
  at("hint").hidden = !ready || Boolean(current && !isDrawing) || row.state === "rejected";
  at("memo").hidden = !edit;
  at("accept").classList.toggle("lit", !edit && !at("accept").disabled);
  at("correct").classList.toggle("lit", Boolean(edit));
  at("worst").setAttribute("aria-pressed", order === "worst");
  at("review").setAttribute("aria-busy", busy);
}

function when(iso) {
  const date = new Date(iso);
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday ? date.toLocaleTimeString() : date.toLocaleString();
}

// ---- keys and buttons ---------------------------------------------------------------------------

/** Connect keys and buttons with `acts`, what the page can do, and with the stage. */
export function connect(acts, stage) {
  const keys = keyTable(acts, stage);
  for (const button of document.querySelectorAll("[data-key]")) {
    button.addEventListener("click", (event) => {
      // After a mouse click the keys act on the frame; a keyboard user keeps the focus.
      if (event.detail) button.blur();
      keys[button.dataset.key]();
    });
  }
  at("filter").addEventListener("change", () => {
    at("filter").blur();
    acts.setFilter(at("filter").value);
  });
  at("goto").addEventListener("submit", (event) => {
    event.preventDefault();
    at("number").blur();
    acts.goTo(Number.parseInt(at("number").value, 10) - 1);
  });
  at("numbers").addEventListener("change", acts.typedBox);
  connectReasons(acts.reject);
  document.addEventListener("keydown", (event) => onKey(event, keys, acts));
  document.addEventListener("keyup", (event) => event.key === " " && stage.setBare(false));
  window.addEventListener("blur", () => stage.setBare(false));
}

function keyTable(acts, stage) {
  const nextFilter = () => {
    const { options, selectedIndex } = at("filter");
    acts.setFilter(options[(selectedIndex + 1) % options.length].value);
  };
  const next = () => acts.move(1);
  const previous = () => acts.move(-1);
  const closer = () => stage.zoom(1.25);
  return {
    a: acts.accept, c: acts.correct, r: () => at("reject").disabled || askReason(), Enter: acts.acceptOrCorrect, u: acts.undo,
    o: acts.reopen, Escape: acts.drop, m: () => at("memo").focus(),
    n: next, PageDown: next, p: previous, PageUp: previous, w: acts.toggleWorst, f: nextFilter,
    g: () => at("number").select(), h: () => stage.nextPart(), d: acts.draw,
    b: () => toggleLayer(stage, "box"), s: () => toggleLayer(stage, "sector"),
    l: () => toggleLayer(stage, "liver"),
    z: () => stage.toggleFull(), "+": closer, "=": closer, "-": () => stage.zoom(0.8),
    "[": () => stage.brighten(-1), "]": () => stage.brighten(1),
    "?": () => at("helpSheet").showModal(), " ": () => stage.setBare(true),
  };
}

function onKey(event, keys, acts) {
  if (document.querySelector("dialog[open]") || event.isComposing) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.target.matches("input, select")) return onKeyInField(event, acts);
  const isUndo = (event.ctrlKey || event.metaKey) && key === "z";
  if (!isUndo && (event.ctrlKey || event.metaKey || event.altKey)) return;
  const isForButton = event.target.matches("button") && (key === "Enter" || key === " ");
  if (isForButton || !(ARROWS[key] || keys[key])) return;
  event.preventDefault();
  if (event.repeat && !REPEATING.has(key)) return;
  if (isUndo) acts.undo();
  else if (ARROWS[key]) acts.nudge(...ARROWS[key].map((px) => px * (event.shiftKey ? BIG_STEP_PX : 1)));
  else keys[key]();
}

function onKeyInField(event, acts) {
  const isEnter = event.key === "Enter" && event.target.id !== "number"; // which has a form
  if (!isEnter && event.key !== "Escape") return;
  event.preventDefault();
  if (isEnter && event.target.id === "memo") acts.correct();
  event.target.blur();
}
