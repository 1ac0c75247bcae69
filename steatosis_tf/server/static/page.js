// The reading page: what is dropped, what is shown, what keys and buttons do. Nothing is kept.

import { made, scoreOf, showAnswer, showFeatures, showFrameFacts, showTrend, tagOf } from "./reading.js";
import { get, sendFiles } from "./server.js";
import { Stage } from "./stage.js";

const PATIENCE_MS = 180000;
const MAX_JSON_BYTES = 1 << 20;
const START_OPACITY = 55;

const at = (id) => document.getElementById(id);
const stage = new Stage(at("stage"), { leastPx: 1, onEdit: () => {}, mayEdit: () => false });
const nothing = () => ({ visits: [], earlier: [], visit: 0, frame: 0, ticket: 0 });
let session;
let now = nothing();

const visit = () => now.visits[now.visit];
const frame = () => visit()?.answer.frames[now.frame];

// ---- reading -----------------------------------------------------------------------------------

async function take(files) {
  const list = [...files].filter((file) => file.size > 0 || file.name);
  if (!list.length || document.body.getAttribute("aria-busy") === "true") return;
  cover("busy", `${list.length} ${list.length === 1 ? "file" : "files"}`);
  try {
    const isOurs = (file) => /\.json$/i.test(file.name);
    const earlier = await Promise.all(list.filter(isOurs).map(readEarlier));
    const frames = list.filter((file) => !isOurs(file));
    if (frames.length) await ask(frames);
    addEarlier(earlier);
    cover(now.visits.length ? "" : "drop");
    showVisit();
  } catch (error) {
    cover("trouble", error.message);
  }
}

async function ask(files) {
  const size = files.reduce((sum, file) => sum + file.size, 0);
  const { max_upload_bytes: most, max_files: mostFiles } = session;
  if (size > most * 0.99 || files.length > mostFiles) {
    throw new Error(`Expected at most ${mostFiles} files and ${most >> 20} MB together. Received: `
      + `${files.length} files, ${Math.ceil(size / (1 << 20))} MB. Choose the frames that show the liver.`);
  }
  const { head, blob } = await sendFiles("/page/answers", files, PATIENCE_MS);
  const bitmapOf = (place) => (place === null ? null
    : createImageBitmap(new Blob([blob(place)], { type: "image/png" })));
  const visits = await Promise.all(head.visits.map(async ({ pictures, ...rest }) => ({
    ...rest,
    date: rest.answer.date,
    pictures: await Promise.all(pictures.map(async ({ picture, map, ...sizes }) => (
      { ...sizes, bitmap: await bitmapOf(picture), map: await bitmapOf(map) }))),
  })));
  now = { ...nothing(), visits, earlier: now.visits.length ? [] : now.earlier, passed: head.passed_over };
  now.visit = visits.length - 1; // the latest
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

function addEarlier(found) {
  now.earlier.push(...found);
}

/** All visits by date: those read now and those saved before. */
const allVisits = () => [...now.earlier, ...now.visits].sort((a, b) => a.date.localeCompare(b.date));

// ---- showing -----------------------------------------------------------------------------------

function cover(which, text = "") {
  for (const id of ["drop", "busy", "trouble"]) at(id).hidden = id !== which;
  document.body.setAttribute("aria-busy", String(which === "busy"));
  if (which === "busy") at("busyText").textContent = text;
  if (which === "trouble") at("troubleText").textContent = text;
}

function showVisit() {
  const shown = visit();
  for (const id of ["json", "print", "clear"]) at(id).disabled = !shown && !(id === "clear" && now.earlier.length);
  showTrend(allVisits());
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
    if (bitmap) {
      const scale = Math.min(212 / bitmap.width, 144 / bitmap.height);
      const [width, height] = [bitmap.width * scale, bitmap.height * scale];
      thumbnail.getContext("2d").drawImage(bitmap, (212 - width) / 2, (144 - height) / 2, width, height);
    }
    const button = made("button", { className, title: one.name }, thumbnail,
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

function toggle(layer, button) {
  stage.layers[layer] = !stage.layers[layer];
  button.setAttribute("aria-pressed", String(stage.layers[layer]));
  stage.render();
}

// ---- what leaves -------------------------------------------------------------------------------

function saveJson() {
  const { answer, date } = visit();
  const content = { notice: session.notice, model: session.model, answer: { ...answer, date } };
  const url = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  made("a", { href: url, download: `steatosis_${date || "undated"}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

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
  now = nothing();
  stage.clear();
  delete at("stage").dataset.frame;
  document.body.dataset.kind = "";
  for (const id of ["answer", "fat", "chances", "features", "look", "frameFacts", "trend", "passed", "made", "strip"])
    at(id).hidden = true;
  at("empty").hidden = false;
  setMap(0);
  cover("drop");
  for (const id of ["json", "print", "clear"]) at(id).disabled = true;
}

// ---- keys, buttons, dropping -------------------------------------------------------------------

const actions = {
  open: () => at("files").click(),
  choose: () => at("files").click(),
  folder: () => at("folderFiles").click(),
  chooseFolder: () => at("folderFiles").click(),
  json: saveJson,
  print: () => window.print(),
  clear,
  help: () => at("helpSheet").showModal(),
  showSector: () => toggle("sector", at("showSector")),
  showLiver: () => toggle("liver", at("showLiver")),
  showBox: () => toggle("box", at("showBox")),
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
  escape: () => !at("trouble").hidden && actions.troubleClose(),
  " ": () => bare(true),
};

function bare(isBare) {
  stage.bare = isBare;
  stage.render();
}

function pressed(event) {
  const isTyping = event.target.matches("input:not([type=range])");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || at("helpSheet").open) return;
  const key = event.key.toLowerCase();
  if (key === " " && event.target.matches("button, summary")) return; // it presses the button
  if (key.startsWith("arrow") && event.target.matches("input")) return;
  const button = document.querySelector(`button[data-key="${CSS.escape(key)}"]`);
  const act = keys[key] ?? (button && !button.disabled && !button.closest("[hidden]") ? actions[button.id] : null);
  if (!act) return;
  event.preventDefault();
  act();
}

/** Files of what was dropped, folders looked through. */
async function dropped(items) {
  const entries = [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const filesIn = async (entry) => {
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
    at(id).addEventListener("change", async () => {
      await take(at(id).files);
      at(id).value = ""; // the same file may be chosen again
    });
  }
  at("opacity").addEventListener("input", () => setMap(at("opacity").value));
  at("date").addEventListener("change", () => {
    visit().date = at("date").value;
    at("visitDate").textContent = visit().date;
    showTrend(allVisits());
  });
  document.addEventListener("keydown", pressed);
  document.addEventListener("keyup", (event) => event.key === " " && bare(false));
  window.addEventListener("beforeprint", drawPrinted);
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault(); // else the browser opens the file
      at("stage").classList.toggle("over", kind === "dragover");
    });
  }
  document.addEventListener("drop", async (event) => {
    take(event.dataTransfer.items.length ? await dropped(event.dataTransfer.items) : event.dataTransfer.files);
  });
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
  at("limits").replaceChildren(...session.limits.map((text) => made("li", { text })));
  document.body.dataset.ready = "true";
}

start();
