// The reading page: what is dropped, what is shown, what keys and buttons do. Nothing is kept.

import { at, drawWhole, made, toggleLayer } from "./elements.js";
import { scoreOf, showAnswer, showFeatures, showFrameFacts, showTrend, tagOf } from "./reading.js";
import { get, sendFiles, unpacked } from "./server.js";
import { Stage, drag } from "./stage.js";

const PATIENCE_MS = 180000;
const MAX_JSON_BYTES = 1 << 20;
const START_OPACITY = 55;

const ARROWS = { arrowup: [-1, 0], arrowdown: [1, 0], arrowleft: [0, -1], arrowright: [0, 1] };
const nothing = () => ({ visits: [], earlier: [], files: [], corrections: [], visit: 0, frame: 0 });
let session;
let now = nothing();
let corners = null; // of the sector while a person moves it
let queue = Promise.resolve(); // what is asked of the server, one after the other
let numCleared = 0;
const stage = new Stage(at("stage"), { leastPx: 1, onEdit: (moved) => place(moved), mayEdit: () => corners !== null });

const visit = () => now.visits[now.visit];
const frame = () => visit()?.answer.frames[now.frame];

// ---- reading -----------------------------------------------------------------------------------

/**
 * Do this after all that was asked before, and never beside it: else the answer that comes last
 * would stand on the page, whosoever it is. `work` asks `isWanted` before it shows anything, since
 * the patient may be cleared while the server reads; `say` tells what went wrong.
 */
function inTurn(work, say = (text) => cover("trouble", text)) {
  const of = numCleared;
  const isWanted = () => of === numCleared;
  queue = queue.then(() => isWanted() && work(isWanted)).catch((error) => isWanted() && say(error.message));
}

/** For work on the patient that is shown: the answer stays where it goes wrong. */
function aside(text) {
  cover();
  hint(text);
}

/** Read what was chosen or dropped; `found` is a promise of the files. */
const take = (found) => inTurn(async (isWanted) => {
  cover("busy");
  const files = await found;
  if (!files.length) throw new Error("Expected frames of one patient. Received: no file. Is the folder empty?");
  at("busyText").textContent = `${files.length} ${files.length === 1 ? "file" : "files"}`;
  const isOurs = (file) => /\.json$/i.test(file.name);
  const earlier = await Promise.all(files.filter(isOurs).map(readEarlier));
  const frames = files.filter((file) => !isOurs(file));
  const answered = frames.length ? await ask(frames) : null;
  if (!isWanted()) return;
  if (answered) {
    const before = now.visits.length ? [] : now.earlier;
    now = { ...nothing(), ...answered, earlier: before, visit: answered.visits.length - 1 }; // the latest
  }
  now.earlier.push(...earlier);
  cover(now.visits.length ? "" : "drop");
  const { length: num } = now.earlier;
  hint(num && !now.visits.length ? `${num} earlier ${num === 1 ? "visit" : "visits"}. A saved visit does not say`
    + " whose it is: take those of this person only. Now the frames of this one." : "");
  showVisit();
});

/** Whether a file is the index of a study's CD, or of its viewer: such files are not sent. */
const isNoFrame = ({ name }) => new RegExp(session.no_frames, "i").test(name);

/** What the server answers to the files of a patient. */
async function ask(given, corrections = []) {
  const files = given.filter((file) => !isNoFrame(file));
  const size = files.reduce((sum, file) => sum + file.size, 0);
  const { max_upload_bytes: most, max_files: mostFiles } = session;
  if (size > most * 0.99 || files.length > mostFiles) {
    throw new Error(`Expected at most ${mostFiles} files and ${most >> 20} MB together. Received: `
      + `${files.length} files, ${Math.ceil(size / (1 << 20))} MB. Choose the frames that show the liver.`);
  }
  const { head, blob } = unpacked(await sendFiles("/page/answers", files, { corrections }, PATIENCE_MS));
  const bitmapOf = (place) => (place === null ? null
    : createImageBitmap(new Blob([blob(place)], { type: "image/png" })));
  const visits = await Promise.all(head.visits.map(async ({ pictures, ...rest }) => ({
    ...rest,
    date: rest.answer.date,
    pictures: await Promise.all(pictures.map(async ({ picture, map, ...sizes }) => (
      { ...sizes, bitmap: await bitmapOf(picture), map: await bitmapOf(map) }))),
  })));
  const passed = [...head.passed_over, ...given.filter(isNoFrame).map(({ name }) => [name, "no frame"])];
  return { visits, files: given, corrections, passed };
}

async function readEarlier(file) {
  const wrong = new Error(`Expected a file that this page has saved. Received: ${file.name}, which is none.`);
  if (file.size > MAX_JSON_BYTES) throw wrong;
  try {
    const { notice, model, answer } = JSON.parse(await file.text());
    const isNumber = (value) => value === null || typeof value === "number";
    const isOurs = notice && isNumber(answer.fat_percent) && answer.fat_interval.every(isNumber)
      && typeof answer.kind === "string" && typeof answer.patient === "string"
      && /^(\d{4}-\d\d-\d\d)?$/.test(answer.date);
    if (!isOurs) throw wrong;
    return { answer, date: answer.date, otherModel: model.sha256 !== session.model.sha256 };
  } catch {
    throw wrong;
  }
}

/** All visits by date: those read now and those saved before. */
const allVisits = () => [...now.earlier, ...now.visits].sort((a, b) => a.date.localeCompare(b.date));

// ---- showing -----------------------------------------------------------------------------------

/** Lay "drop", "busy" or "trouble" over the frame. What a patient before was told is hidden and stays here. */
function cover(which = "", text = "") {
  for (const id of ["drop", "busy", "trouble"]) at(id).hidden = id !== which;
  document.body.setAttribute("aria-busy", String(which === "busy"));
  document.body.dataset.cover = which;
  for (const id of ["json", "report", "print"]) at(id).disabled = which !== "";
  at("clear").disabled = which === "drop" && !now.earlier.length;
  if (which === "busy") at("busyText").textContent = text;
  if (which === "trouble") at("troubleText").textContent = text;
}

function showVisit() {
  const shown = visit();
  at("report").hidden = !(shown?.is_dicom && session.can_report);
  showTrend(allVisits(), session);
  if (!shown) return;
  showAnswer({ ...shown.answer, date: shown.date }, session);
  at("dateAsked").hidden = Boolean(shown.answer.date);
  at("date").value = shown.date;
  at("visits").hidden = now.visits.length < 2;
  at("visits").replaceChildren(...now.visits.map((one, place) => {
    const button = made("button", { text: one.date || `Study ${place + 1}`, "aria-pressed": String(place === now.visit) });
    button.addEventListener("click", () => toVisit(place));
    return button;
  }));
  at("look").hidden = false;
  at("mapSlide").hidden = !shown.pictures.some(({ map }) => map);
  at("showMap").disabled = at("mapSlide").hidden;
  showPassed();
  showStrip(shown);
  const first = shown.answer.frames.findIndex(({ kind }) => kind === "graded");
  toFrame(Math.max(first, 0));
}

function showPassed() {
  const passed = now.passed ?? [];
  at("passed").hidden = !passed.length;
  at("passedTitle").textContent = `${passed.length} not looked at`;
  at("passedList").replaceChildren(...passed.map(([name, why]) => made("li", { text: `${name}: ${why}` })));
}

function showStrip({ answer, pictures, outlier }) {
  at("strip").hidden = answer.frames.length < 2;
  at("strip").replaceChildren(...answer.frames.map((one, place) => {
    const isOdd = place === outlier;
    const className = `${one.kind === "graded" ? "" : "unused"} ${isOdd ? "odd" : ""}`;
    const thumbnail = made("canvas", { width: 212, height: 144 });
    const { bitmap } = pictures[place];
    if (bitmap) drawWhole(bitmap, thumbnail);
    const label = `Frame ${place + 1}: ${tagOf(one, isOdd)}, fat score ${scoreOf(one)}`;
    const button = made("button", { className, title: one.name, "aria-label": label }, thumbnail,
      made("div", { className: "score" }, made("span", { text: scoreOf(one) }), made("span", { text: String(place + 1) })),
      made("div", { className: "tag", text: tagOf(one, isOdd) }));
    button.addEventListener("click", () => toFrame(place));
    return button;
  }));
}

function toVisit(place) {
  now.visit = place;
  showVisit();
}

function toFrame(place) {
  const shown = visit();
  leave();
  if (!shown || place < 0 || place >= shown.answer.frames.length) return;
  now.frame = place;
  [...at("strip").children].forEach((button, at_) => button.setAttribute("aria-current", String(at_ === place)));
  at("strip").children[place]?.scrollIntoView({ block: "nearest", inline: "nearest" });
  showFeatures(shown.answer, frame(), session);
  showFrameFacts(frame(), place, shown.answer.frames.length, shown.outlier === place);
  drawFrame();
}

/** The frame with the map over it, in px of the picture. */
function composed() {
  const { bitmap, map } = visit().pictures[now.frame];
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  context.globalAlpha = Number(at("opacity").value) / 100;
  if (map && context.globalAlpha) context.drawImage(map, 0, 0, bitmap.width, bitmap.height);
  return canvas;
}

function drawFrame() {
  const { bitmap, height, width } = visit().pictures[now.frame];
  if (!bitmap) {
    stage.clear();
    at("stage").dataset.frame = "none";
    return;
  }
  stage.show(composed(), { height, width });
  const { sector, liver, boxes } = frame();
  stage.setOutlines({ sector: sector.length ? [sector] : [], liver: liver.length ? [liver] : [] });
  stage.setBox(boxes.kidney ?? null, null);
  at("stage").dataset.frame = String(now.frame);
}

function setMap(value) {
  at("opacity").value = value;
  at("showMap").setAttribute("aria-pressed", String(Number(at("opacity").value) > 0));
  if (visit()) drawFrame();
}

// ---- a sector that a person places ---------------------------------------------------------------

const fan = () => visit()?.pictures[now.frame]?.fan;

function hint(text = "") {
  at("hint").hidden = !text;
  at("hint").textContent = text;
}

function correct() {
  if (!visit()) return;
  if (!fan()) return hint("No sector was found in this frame, so there is none to correct. Leave the frame out.");
  hint();
  stage.part = "nw";
  stage.layers.box = true; // the kidney's layer draws the handles, too
  at("showBox").setAttribute("aria-pressed", "true");
  place(fan().corners);
  at("editing").hidden = false;
  at("look").hidden = true;
  at("found").disabled = !frame().by_person;
}

function place(moved) {
  corners = moved;
  stage.setBox(corners, fan().corners, fan());
}

function leave() {
  hint();
  if (!corners) return;
  corners = null;
  at("editing").hidden = true;
  at("look").hidden = false;
  drawFrame();
}

/** Read all frames again, this one with its sector at `placed`; with none, where it is found. */
const readAgain = (placed) => inTurn(async (isWanted) => {
  const { visits, visit: ofVisit, frame: ofFrame, files } = now;
  const others = now.corrections.filter((one) => one.visit !== ofVisit || one.frame !== ofFrame);
  const mine = placed ? [{ visit: ofVisit, frame: ofFrame, corners: placed }] : [];
  cover("busy", "with the sector where you placed it");
  const answered = await ask(files, [...others, ...mine]);
  if (!isWanted()) return;
  answered.visits.forEach((one, place_) => { one.date = visits[place_].date; });
  Object.assign(now, answered);
  cover();
  leave();
  showVisit();
  toFrame(ofFrame);
}, aside);

const editing = {
  apply: () => readAgain(corners),
  found: () => !at("found").disabled && readAgain(null),
  leave,
};

/** Keys while a sector is placed; whether this was one of them. */
function pressedEditing(key, isBig) {
  if (ARROWS[key]) place(drag(corners, stage.part, ...ARROWS[key].map((px) => px * (isBig ? 10 : 1)), stage.frame, 1));
  else if (key === "h") stage.nextPart();
  else if (key === "enter") editing.apply();
  else if (key === "r") editing.found();
  else if (key === "escape") leave();
  else return "z+-[]? ".includes(key) ? false : key.length === 1; // the rest waits until it is placed
  return true;
}

// ---- what leaves -------------------------------------------------------------------------------

function save(content, type, suffix) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  made("a", { href: url, download: `steatosis_${visit().date || "undated"}${suffix}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

function saveJson() {
  const { answer, date } = visit();
  const content = { notice: session.notice, model: session.model, answer: { ...answer, date } };
  save(JSON.stringify(content, null, 1), "application/json", ".json");
}

const saveReport = () => inTurn(async (isWanted) => {
  const { files, corrections, visit: ofVisit } = now;
  cover("busy", "for the PACS");
  const report = await sendFiles(`/page/report/${ofVisit}`, files.filter((file) => !isNoFrame(file)), { corrections }, PATIENCE_MS);
  if (!isWanted()) return;
  cover();
  save(report, "application/zip", "_sr.zip");
}, aside);

/** The frame as it goes on paper: outlines in px of the picture, not of the screen. */
function drawPrinted() {
  const canvas = at("printed").querySelector("canvas");
  const { bitmap, width } = visit()?.pictures[now.frame] ?? {};
  at("printed").hidden = !bitmap;
  if (!bitmap) return;
  const picture = composed();
  [canvas.width, canvas.height] = [picture.width, picture.height];
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const scale = picture.width / width;
  const { sector, liver, boxes } = frame();
  context.lineWidth = Math.max(1, picture.width / 400);
  for (const [layer, points, colour] of [["sector", sector, "#6db9db"], ["liver", liver, "#b9a0f2"]]) {
    if (!stage.layers[layer] || !points.length) continue;
    context.strokeStyle = colour;
    context.beginPath();
    for (const [x, y] of points) context.lineTo(x * scale, y * scale);
    context.closePath();
    context.stroke();
  }
  if (stage.layers.box && boxes.kidney) {
    const [top, left, height, across] = boxes.kidney.map((side) => side * scale);
    context.strokeStyle = "#f2ab3d";
    context.strokeRect(left, top, across, height);
  }
}

function clear() {
  numCleared += 1;
  queue = Promise.resolve(); // the next patient does not wait for this one
  corners = null;
  hint();
  now = nothing();
  stage.clear();
  delete at("stage").dataset.frame;
  document.body.dataset.kind = "";
  for (const id of ["answer", "fat", "chances", "features", "look", "frameFacts", "trend", "passed", "made", "strip", "editing", "report"])
    at(id).hidden = true;
  at("empty").hidden = false;
  setMap(0);
  cover("drop");
}

/** `X` lies between `Z` and `C`: what a person has placed is not forgotten by one slip. */
function forget() {
  const warning = "Your corrections would be lost. X once more forgets the patient.";
  if (now.corrections.length && at("hint").textContent !== warning) hint(warning);
  else clear();
}

// ---- keys, buttons, dropping -------------------------------------------------------------------

const actions = {
  open: () => at("files").click(),
  choose: () => at("files").click(),
  folder: () => at("folderFiles").click(),
  chooseFolder: () => at("folderFiles").click(),
  json: saveJson,
  report: saveReport,
  print: () => window.print(),
  clear: forget,
  help: () => at("helpSheet").showModal(),
  showSector: () => toggleLayer(stage, "sector"),
  showLiver: () => toggleLayer(stage, "liver"),
  showBox: () => toggleLayer(stage, "box"),
  correct,
  ...editing,
  showMap: () => setMap(Number(at("opacity").value) ? 0 : START_OPACITY),
  troubleClose: () => cover(now.visits.length ? "" : "drop"),
};
const keys = {
  n: () => toFrame(now.frame + 1),
  arrowright: () => toFrame(now.frame + 1),
  p: () => toFrame(now.frame - 1),
  arrowleft: () => toFrame(now.frame - 1),
  v: () => now.visits.length > 1 && toVisit((now.visit + 1) % now.visits.length),
  ",": () => setMap(Number(at("opacity").value) - 10),
  ".": () => setMap(Number(at("opacity").value) + 10),
  z: () => stage.toggleFull(),
  "+": () => stage.zoom(1.2),
  "-": () => stage.zoom(1 / 1.2),
  "[": () => stage.brighten(-1),
  "]": () => stage.brighten(1),
  escape: () => (at("trouble").hidden ? hint() : actions.troubleClose()),
  " ": () => stage.setBare(true),
};

function pressed(event) {
  const isTyping = event.target.matches("input:not([type=range])");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || at("helpSheet").open) return;
  const key = event.key.toLowerCase();
  if (key === " " && event.target.matches("button, summary")) return; // it presses the button
  if (key.startsWith("arrow") && event.target.matches("input")) return;
  if (document.body.dataset.cover && !["o", "d", "x", "?", "escape"].includes(key)) return;
  if (corners && !(key === "enter" && event.target.matches("button")) && pressedEditing(key, event.shiftKey)) {
    event.preventDefault();
    return;
  }
  const button = document.querySelector(`button[data-key="${CSS.escape(key)}"]`);
  const act = keys[key] ?? (button && !button.disabled && !button.closest("[hidden]") ? actions[button.id] : null);
  if (!act) return;
  event.preventDefault();
  act();
}

/** Files of what was dropped, folders looked through. */
async function dropped(items) {
  // What other programs hand over may have no entry: a mail, a viewer.
  const entries = [...items].map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile()).filter(Boolean);
  const filesIn = async (entry) => {
    if (entry instanceof File) return [entry];
    if (entry.isFile) return [await new Promise((good, bad) => entry.file(good, bad))];
    const reader = entry.createReader();
    const found = [];
    for (;;) {
      const some = await new Promise((good, bad) => reader.readEntries(good, bad));
      if (!some.length || found.length > 1000) break;
      found.push(...some);
    }
    return (await Promise.all(found.map(filesIn))).flat();
  };
  return (await Promise.all(entries.map(filesIn))).flat();
}

function connect() {
  for (const [id, act] of Object.entries(actions)) at(id).addEventListener("click", act);
  for (const id of ["files", "folderFiles"]) {
    at(id).addEventListener("change", () => {
      take([...at(id).files]);
      at(id).value = ""; // the same file may be chosen again
    });
  }
  at("opacity").addEventListener("input", () => setMap(at("opacity").value));
  at("date").addEventListener("change", () => {
    visit().date = at("date").value;
    at("visitDate").textContent = visit().date;
    showTrend(allVisits(), session);
  });
  document.addEventListener("keydown", pressed);
  document.addEventListener("keyup", (event) => event.key === " " && stage.setBare(false));
  window.addEventListener("beforeprint", drawPrinted);
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault(); // else the browser opens the file
      at("stage").classList.toggle("over", kind === "dragover");
    });
  }
  document.addEventListener("drop", ({ dataTransfer: { items, files } }) => take(items.length ? dropped(items) : [...files]));
}

async function start() {
  connect();
  try {
    session = await get("/page/session");
  } catch (error) {
    cover("trouble", error.message);
    return;
  }
  at("model").textContent = session.model.name;
  at("limits").replaceChildren(...session.limits.map((text) => made("li", { text: text.replaceAll("`", "") })));
  document.body.dataset.ready = "true";
}

start();
