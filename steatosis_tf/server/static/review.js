// The review page: what is shown, what keys and buttons do, what is saved.

import { at, message, notice } from "./elements.js";
import { isFan } from "./fan.js";
import { STATE_NAMES, connect, progress, showPanel } from "./panel.js";
import { Frames, get, post } from "./server.js";
import { Stage, drag, same, typed } from "./stage.js";

const KEPT_UNDOS = 200;

const frames = new Frames("/review/frames");
const session = () => get("/review/session");
/** Row at a place, its neighbours and the progress. */
const go = (where) => get("/review/go", where);
/** `{saved, row, ...}`; resolves when the decision is on disk. */
const decide = (decision) => post("/review/decisions", decision);

let stage;
let leastPx;

const now = {
  row: null, // the row as the server has it
  edit: null, // a box that is not saved yet
  steps: [], // boxes before each change since the last save
  undos: [], // [frame_id, revision after it] of every decision in this tab
  filter: "to_review",
  order: "file",
  ahead: [], // the rows that come next, so that a key press waits for nothing
  ready: false, // the frame is drawn and can be judged
  busy: false,
  ticket: 0,
};

/** What is corrected of a row: the corners of its fan, or its box. */
const shapeOf = (row) => row?.fan?.corners ?? row?.box ?? null;
const box = () => now.edit ?? shapeOf(now.row);
const panel = () => showPanel(now, box(), stage.drawing);
const place = (more) => ({ filter_by: now.filter, order: now.order, ...more });

// ---- what is kept in the tab, so that a reload or a restarted server loses no work -------------

function remember() {
  const { row, edit, undos, filter, order } = now;
  const draft = row && edit ? { revision: row.revision, edit } : null;
  const kept = { frame_id: row?.frame_id ?? "", draft, undos: undos.slice(-KEPT_UNDOS), filter, order };
  sessionStorage.setItem("review", JSON.stringify(kept));
}

// ---- showing -----------------------------------------------------------------------------------

async function show(answer) {
  if (answer.counts) progress(answer);
  const { row, ahead } = answer;
  Object.assign(now, { row, ahead, edit: null, steps: [], ready: false });
  stage.drawing = false;
  stage.part = "whole";
  const ticket = ++now.ticket;
  remember();
  if (!row) return showEnd(answer);
  await draw(row, ticket);
  if (ticket !== now.ticket) return;
  panel();
  if (!answer.counts) lookAgain(ticket).catch(() => {}); // then the server is asked in its turn
  const [next, ...later] = ahead;
  frames.prefetch([next, ...answer.behind ?? [], ...later].filter(Boolean).map((one) => one.frame_id));
}

/** Next frame under the filter: as it was seen coming, or else as the server says. */
const following = async () => {
  const [row, ...ahead] = now.ahead;
  return row ? { row, ahead } : go(place({ frame_id: now.row?.frame_id ?? "", step: 1 }));
};

/** What was seen coming is a while old; meanwhile somebody may have decided about it. */
async function lookAgain(ticket) {
  const fresh = await go(place({ frame_id: now.row.frame_id }));
  if (ticket !== now.ticket || now.busy) return;
  now.ahead = fresh.ahead;
  if (fresh.row.revision !== now.row.revision && !now.edit) {
    now.row = fresh.row;
    if (now.ready) stage.setBox(shapeOf(fresh.row), null, fresh.row.fan);
  }
  progress(fresh);
  panel();
  frames.prefetch(fresh.ahead.map((one) => one.frame_id));
}

async function draw(row, ticket) {
  let frame;
  try {
    frame = await frames.get(row.frame_id);
  } catch (error) {
    if (ticket !== now.ticket) return;
    stage.clear();
    setOutlines({});
    message("This frame cannot be shown", error.message, "R rejects it, N goes on to the next one.");
    at("stage").dataset.frame = row.frame_id;
    return;
  }
  if (ticket !== now.ticket) return;
  now.ready = true;
  message();
  if (frame.notice) notice(frame.notice);
  stage.show(frame.bitmap, frame);
  stage.setBox(shapeOf(row), null, row.fan);
  at("stage").dataset.frame = row.frame_id;
  frame.outlines.then((outlines) => ticket === now.ticket && setOutlines(outlines), () => {});
}

function setOutlines(outlines) {
  stage.setOutlines(outlines);
  at("showSector").hidden = !outlines.sector;
  at("showLiver").hidden = !outlines.liver;
}

function showEnd(answer) {
  stage.clear();
  setOutlines({});
  delete at("stage").dataset.frame;
  const chosen = at("filter").selectedOptions[0].textContent;
  const isDone = now.filter === "to_review" && answer.counts.to_review === 0;
  message(isDone ? "Every frame is reviewed" : `No frame under “${chosen}”`,
    isDone ? "All decisions are in the manifest." : "F shows the next filter.",
    now.undos.length ? "U takes the last decision back." : "");
  panel();
}

// ---- going -------------------------------------------------------------------------------------

/** Do one thing; a failure is shown and changes nothing. */
async function run(work) {
  now.busy = true;
  at("review").setAttribute("aria-busy", true);
  notice();
  try {
    await work();
  } catch (error) {
    notice(error.message, "bad");
  } finally {
    now.busy = false;
    panel();
  }
}

let working = Promise.resolve();

/** Do it now or not at all: a key pressed before the frame is there was not meant for it. */
function alone(work) {
  if (!now.busy) working = run(work);
  return working;
}

/** Do it as soon as what is under way is done: a choice of the reviewer must not get lost. */
function inTurn(work) {
  working = working.then(() => run(work));
  return working;
}

/** Whether something would be lost by going elsewhere; then it says so. */
function isUnsaved() {
  if (now.edit) notice("The changed box is not saved: C saves it, Esc drops it.", "bad");
  return Boolean(now.edit);
}

const move = (step) => alone(async () => {
  if (isUnsaved()) return;
  const before = now.row;
  const answer = step > 0 ? await following()
    : await go(place({ frame_id: before?.frame_id ?? "", step }));
  if (!answer.row && before) return notice("No other frame under this filter.");
  await show(answer);
  const isAround = before && (answer.row.rank - before.rank) * step < 0;
  if (isAround && now.ready && !at("notice").textContent) notice(step > 0 ? "Began again at the start." : "Went on from the end.");
});

/** Show the first frame that is still there to see under the filter and order chosen. */
const restart = () => inTurn(async () => show(await go(place({ frame_id: "" }))));

function setFilter(name) {
  if (!isUnsaved()) {
    now.filter = name;
    remember();
    restart();
  }
  at("filter").value = now.filter;
}

function goTo(rank) {
  if (rank >= 0 && !isUnsaved()) inTurn(async () => show(await go(place({ rank }))));
  else panel();
}

function toggleWorst() {
  if (isUnsaved()) return;
  now.order = now.order === "worst" ? "file" : "worst";
  remember(); // a page that is loaded anew before the server answers still knows the choice
  if (now.order === "file" && now.row) return inTurn(async () => show(await go(place({ frame_id: now.row.frame_id }))));
  restart();
}

// ---- editing -----------------------------------------------------------------------------------

function edit(changed, isFinal = true) {
  if (isFinal && same(changed, shapeOf(now.row))) now.edit = null;
  else now.edit = changed;
  stage.setBox(box(), now.edit ? shapeOf(now.row) : null);
  panel();
  if (isFinal) remember();
}

/** Change the box as one step that undo takes back. */
function step(changed) {
  if (same(changed, box())) return;
  now.steps.push(now.edit);
  edit(changed);
}

function nudge(down, right) {
  if (box() && now.ready) step(drag(box(), stage.part, down, right, stage.frame, leastPx));
}

function startDrawing() {
  if (!now.ready) return;
  if (now.row.fan) return notice("The model sees the whole fan: drag its corners.");
  stage.drawing = !stage.drawing;
  stage.render();
  panel();
}

function drop() {
  stage.drawing = false;
  now.edit = null;
  now.steps = [];
  stage.setBox(box(), null);
  notice();
  panel();
  remember();
}

function typedBox() {
  const inputs = [...at("numbers").querySelectorAll("input")];
  const changed = typed(inputs.map((input) => input.value), stage.frame, leastPx);
  for (const input of inputs) input.setAttribute("aria-invalid", !changed);
  if (changed) step(changed);
}

// ---- deciding ----------------------------------------------------------------------------------

const save = (action, more = {}) => alone(async () => {
  const { row, edit: changed } = now;
  const wanted = { frame_id: row.frame_id, revision: row.revision, action, ...more };
  const answer = await decide(wanted);
  progress(answer);
  if (!answer.saved) return conflict(answer.row, changed);
  now.undos.push([row.frame_id, answer.row.revision]);
  now.row = { ...answer.row, rank: row.rank };
  now.edit = null;
  at("memo").value = "";
  at("saved").textContent = `✓ ${STATE_NAMES[answer.row.state]}, saved ${new Date().toLocaleTimeString()}`;
  await show(await following());
});

/** Somebody else was quicker: show theirs, keep mine as an unsaved change. */
function conflict(theirs, mine) {
  now.row = { ...theirs, rank: now.row.rank };
  now.edit = mine && now.ready && !same(mine, shapeOf(theirs)) ? mine : null;
  stage.setBox(box(), now.edit ? shapeOf(theirs) : null, theirs.fan);
  remember();
  const who = theirs.state ? `${theirs.reviewer} ${theirs.state} this frame` : "This frame was reopened";
  notice(`${who} meanwhile. Nothing was overwritten. ${now.edit
    ? "Theirs is dashed: Esc keeps it, C saves yours instead." : "What you see now is theirs."}`, "bad");
}

function accept() {
  if (now.edit) return notice("The box was changed: C saves the correction, Esc drops it.", "bad");
  if (!at("accept").disabled) save("accept");
}

function correct() {
  const changed = isFan(now.edit) ? { corners: now.edit } : { box: now.edit };
  if (now.edit) return save("correct", { ...changed, reason: at("memo").value });
  if (now.ready) notice(box() ? "Move or resize the box first: drag it, or use the arrow keys." : "Draw a box first: drag on the frame.");
}

const reject = (reason) => save("reject", { reason });

function undo() {
  if (now.steps.length) return edit(now.steps.pop() ?? shapeOf(now.row));
  if (now.undos.length) return undoLast();
  if (now.row?.num_decisions) return takeBack("undo");
  notice("Nothing to undo.");
}

/** Go back to the frame decided last in this tab, and take that decision back. */
const undoLast = () => alone(async () => {
  const [frameId, revision] = now.undos.at(-1);
  const answer = await decide({ frame_id: frameId, revision, action: "undo" });
  now.undos.pop(); // not before: a server that does not answer has not undone it
  await show(await go(place({ frame_id: frameId })));
  if (!answer.saved) return notice(`${answer.row.reviewer} changed this frame since: not undone.`, "bad");
  at("saved").textContent = `↶ Undone, saved ${new Date().toLocaleTimeString()}`;
});

const takeBack = (action) => alone(async () => {
  const { frame_id: frameId, revision } = now.row;
  const answer = await decide({ frame_id: frameId, revision, action });
  if (!answer.saved) return conflict(answer.row, null);
  now.undos = now.undos.filter(([id]) => id !== frameId);
  await show(await go(place({ frame_id: frameId })));
  at("saved").textContent = `↶ Back to ${now.row.state || "the proposal"}, saved ${new Date().toLocaleTimeString()}`;
});

// ---- beginning ---------------------------------------------------------------------------------

async function start() {
  const about = await session();
  leastPx = about.min_box_px;
  at("manifest").textContent = about.manifest;
  at("reviewer").textContent = about.reviewer;
  let before = null;
  stage = new Stage(at("stage"), {
    leastPx,
    mayEdit: () => now.ready,
    onEdit: (changed, isFinal) => {
      if (!isFinal) { before ??= [now.edit]; return edit(changed, false); }
      if (before) now.steps.push(before[0]);
      before = null;
      edit(changed);
    },
  });
  connect({
    accept, correct, acceptOrCorrect: () => (now.edit ? correct() : accept()), reject, undo,
    reopen: () => now.row?.num_decisions && takeBack("reopen"), drop, draw: startDrawing, nudge,
    typedBox, move, goTo, setFilter, toggleWorst,
  }, stage);
  const kept = JSON.parse(sessionStorage.getItem("review") ?? "{}");
  now.undos = kept.undos ?? [];
  now.filter = at("filter").value = kept.filter ?? "to_review";
  now.order = kept.order ?? "file";
  await alone(async () => {
    const answer = await go(place({ frame_id: kept.frame_id ?? "" })).catch(() => go(place({ frame_id: "" })));
    await show(answer);
    if (kept.draft && kept.draft.revision === now.row?.revision && now.ready) {
      step(kept.draft.edit);
      notice("Your unsaved change is back.");
    }
  });
}

start().catch((error) => message("The page could not start", error.message));
