// What stands beside the frame: state, numbers, buttons, progress and messages.

export const STATE_NAMES = {
  "": "To review", accepted: "Accepted", corrected: "Corrected", rejected: "Rejected",
};

export const at = (id) => document.getElementById(id);

/** Text in place of a frame; none takes it away. */
export function message(title = "", ...lines) {
  at("message").hidden = !title;
  at("message").replaceChildren(...[title, ...lines].filter(Boolean).map((text, index) => {
    const line = document.createElement(index ? "p" : "h2");
    line.textContent = text;
    return line;
  }));
}

/** A line above the buttons; `kind` "bad" for what did not work. */
export function notice(text = "", kind = "") {
  at("notice").hidden = !text;
  at("notice").textContent = text;
  at("notice").className = `notice ${kind}`;
}

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
  at("signed").textContent = decided ? `by ${row.reviewer}, ${when(row.reviewed_at)}` : "";
  at("quality").textContent = row ? row.quality?.toFixed(2) ?? "–" : "";
  at("qualityBar").style.width = `${100 * (row?.quality ?? 0)}%`;
  at("reason").textContent = row?.reason || (row && !row.box && !decided ? "No proposal" : "");
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
