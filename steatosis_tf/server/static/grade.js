// The grading page: a reader logs on, sees the frames of one case after another, and says a grade.

import { at, drawWhole, made, message, notice } from "./elements.js";
import { askReason, connectReasons } from "./reasons.js";
import { Frames, get, post } from "./server.js";
import { Stage } from "./stage.js";

const KEPT_FRAMES = 60;
const NO_CHOICE = { grade: null, confidence: "" };

const stage = new Stage(at("stage"), { leastPx: 1, onEdit: () => {}, mayEdit: () => false });
const now = { reader: "", place: null, choice: NO_CHOICE, frame: 0, busy: true, isNew: "", ticket: 0 };
let frames;
let grades = [];

const tell = (what, wanted = {}) => post(`/grade/${encodeURIComponent(now.reader)}/${what}`, wanted);
const idOf = (number) => `${now.place.case}-${number}`;

// ---- showing -----------------------------------------------------------------------------------

function panel() {
  const { place, choice, busy, reader } = now;
  const isReading = Boolean(place?.case);
  at("who").hidden = !reader;
  at("panel").hidden = !place;
  at("reader").textContent = reader;
  at("progress").textContent = place ? `${place.num_read} of ${place.num_cases} read` : "";
  at("meter").hidden = !place;
  at("meter").setAttribute("aria-valuenow", place?.num_read ?? 0);
  at("meter").setAttribute("aria-valuemax", place?.num_cases ?? 0);
  at("meter").firstChild.style.width = `${100 * (place?.num_read ?? 0) / (place?.num_cases || 1)}%`;
  at("case").textContent = isReading ? `Case ${place.case}` : "";
  for (const button of at("panel").querySelectorAll(".choice button")) {
    const { grade, confidence } = button.dataset;
    const isChosen = grade === undefined ? confidence === choice.confidence : Number(grade) === choice.grade;
    button.setAttribute("aria-pressed", String(isChosen));
    button.disabled = !isReading;
  }
  const isWhole = choice.grade !== null && choice.confidence !== "";
  at("save").disabled = busy || !isReading;
  at("save").classList.toggle("lit", isWhole);
  at("unable").disabled = busy || !isReading;
  at("undo").disabled = busy || !place?.num_read;
  at("grading").setAttribute("aria-busy", String(busy));
}

async function show(place, choice = NO_CHOICE) {
  Object.assign(now, { place, choice, frame: 0 });
  const ticket = ++now.ticket;
  delete at("stage").dataset.frame;
  stage.clear();
  at("frameNumber").textContent = "";
  if (place.trouble) notice(`Answers are safe in the store, but ${place.trouble}`, "bad");
  if (!place.case) {
    at("strip").hidden = true;
    return message("Every case is read", `Thank you. All ${place.num_cases} answers are saved.`, "U takes the last one back.");
  }
  message();
  showStrip(ticket);
  await toFrame(0);
}

function showStrip(ticket) {
  const { num_frames: total } = now.place;
  at("strip").hidden = total < 2;
  at("strip").replaceChildren(...Array.from({ length: total }, (_, number) => {
    const thumbnail = made("canvas", { width: 152, height: 108 });
    const button = made("button", { "aria-label": `Frame ${number + 1}` }, thumbnail, made("span", { text: String(number + 1) }));
    button.addEventListener("click", () => { button.blur(); toFrame(number); });
    frames.get(idOf(number)).then(({ bitmap }) => {
      if (ticket === now.ticket) drawWhole(bitmap, thumbnail);
    }, () => {});
    return button;
  }));
}

async function toFrame(number) {
  if (!now.place?.case || number < 0 || number >= now.place.num_frames) return;
  now.frame = number;
  const { ticket } = now;
  const isCurrent = () => ticket === now.ticket && now.frame === number;
  [...at("strip").children].forEach((button, place) => button.setAttribute("aria-current", String(place === number)));
  at("strip").children[number]?.scrollIntoView({ block: "nearest", inline: "nearest" });
  at("frameNumber").textContent = `Frame ${number + 1} of ${now.place.num_frames}`;
  try {
    const frame = await frames.get(idOf(number));
    if (!isCurrent()) return;
    message();
    stage.show(frame.bitmap, frame);
  } catch (error) {
    if (!isCurrent()) return;
    stage.clear();
    message("This frame cannot be shown", error.message, "Grade by the others, or press X.");
  }
  at("stage").dataset.frame = idOf(number);
}

// ---- answering ---------------------------------------------------------------------------------

/** Do one thing or, while another is under way, nothing; a failure is shown and changes nothing. */
async function alone(work) {
  if (now.busy) return;
  now.busy = true;
  notice();
  panel();
  try {
    await work();
  } catch (error) {
    notice(error.message, "bad");
  } finally {
    now.busy = false;
    panel();
  }
}

const save = (answer) => alone(async () => {
  const { case: number } = now.place;
  const { saved, ...place } = await tell("answers", { case: number, ...answer });
  await show(place);
  if (!saved) return notice("This case was answered in another window: nothing was overwritten.", "bad");
  at("saved").textContent = `✓ Case ${number} saved ${new Date().toLocaleTimeString()}`;
});

function saveChoice() {
  const { grade, confidence } = now.choice;
  if (!now.place?.case) return;
  if (grade === null) return notice("Choose a grade first: 0, 1, 2 or 3; or X, unable.", "bad");
  if (!confidence) return notice("How sure are you? L, M or H.", "bad");
  save(now.choice);
}

const undo = () => alone(async () => {
  const { taken_back: before, ...place } = await tell("undo");
  if (!before) return notice("There is nothing to take back.");
  await show(place, { grade: before.grade, confidence: before.confidence });
  const said = before.grade === null ? `Unable: ${before.reason}` : `${grades[before.grade]}, ${before.confidence}`;
  notice(`Taken back: ${said}. Say it anew.`);
  at("saved").textContent = "";
});

function choose(choice) {
  if (!now.place?.case || now.busy) return;
  now.choice = { ...now.choice, ...choice };
  notice();
  panel();
}

// ---- logging on --------------------------------------------------------------------------------

const logOn = (initials, begins) => alone(async () => {
  const { reader, is_new: isNew, ...place } = await post("/grade/log-on", { initials, begins });
  at("initials").value = reader;
  now.isNew = isNew ? reader : "";
  if (isNew) {
    at("logOnText").textContent = `${reader} has not read here before. Enter once more begins a new reading.`;
    return;
  }
  now.reader = reader;
  sessionStorage.setItem("reader", reader);
  frames = new Frames(`/grade/${encodeURIComponent(reader)}/frames`, { kept: KEPT_FRAMES, outlines: false });
  at("logOn").hidden = true;
  at("saved").textContent = "";
  await show(place);
});

function logOff() {
  sessionStorage.removeItem("reader");
  location.reload();
}

function askWho() {
  at("logOn").hidden = false;
  at("initials").focus();
}

// ---- keys and buttons --------------------------------------------------------------------------

const keys = {
  l: () => choose({ confidence: "low" }),
  m: () => choose({ confidence: "medium" }),
  h: () => choose({ confidence: "high" }),
  Enter: saveChoice,
  x: () => at("unable").disabled || askReason(),
  u: () => at("undo").disabled || undo(),
  n: () => toFrame(now.frame + 1),
  p: () => toFrame(now.frame - 1),
  ArrowRight: () => toFrame(now.frame + 1),
  ArrowLeft: () => toFrame(now.frame - 1),
  z: () => stage.toggleFull(),
  "+": () => stage.zoom(1.25),
  "-": () => stage.zoom(0.8),
  "[": () => stage.brighten(-1),
  "]": () => stage.brighten(1),
  "?": () => at("helpSheet").showModal(),
};
const REPEATING = new Set(["n", "p", "ArrowRight", "ArrowLeft", "+", "-"]);

function pressed(event) {
  if (event.target.matches("input") || document.querySelector("dialog[open]") || event.isComposing) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const isUndo = (event.ctrlKey || event.metaKey) && key === "z";
  if (!isUndo && (event.ctrlKey || event.metaKey || event.altKey)) return;
  const isForButton = event.target.matches("button") && (key === "Enter" || key === " ");
  const act = isUndo ? keys.u : keys[key];
  if (isForButton || !act || (event.repeat && !REPEATING.has(key))) return;
  event.preventDefault();
  act();
}

function connect() {
  at("grades").replaceChildren(...grades.map((name, grade) => made(
    "button", { "data-key": String(grade), "data-grade": String(grade) }, made("kbd", { text: String(grade) }), name)));
  grades.forEach((_, grade) => { keys[grade] = () => choose({ grade }); });
  for (const button of document.querySelectorAll("[data-key]")) {
    button.addEventListener("click", (event) => {
      if (event.detail) button.blur(); // after a mouse click the keys act on the case
      keys[button.dataset.key]();
    });
  }
  at("leave").addEventListener("click", logOff);
  connectReasons((reason) => save({ reason }));
  at("initials").addEventListener("input", () => { now.isNew = ""; });
  at("logOn").addEventListener("submit", (event) => {
    event.preventDefault();
    const initials = at("initials").value;
    logOn(initials, now.isNew !== "" && now.isNew === initials).then(() => {
      if (!now.reader && at("notice").textContent) at("logOnText").textContent = at("notice").textContent;
      if (!now.place?.num_read) return;
      notice(`${now.reader} has read ${now.place.num_read} before and goes on. If that was somebody else, log off and `
        + "take other initials.");
    });
  });
  document.addEventListener("keydown", pressed);
}

async function start() {
  ({ grades } = await get("/grade/session"));
  connect();
  now.busy = false;
  panel();
  const before = sessionStorage.getItem("reader");
  if (before) await logOn(before, false);
  if (!now.reader) askWho();
}

start().catch((error) => message("The page could not start", error.message));
