// The answer beside the frame: words, scales and tables. Knows no server and no keys.

import { at, made } from "./elements.js";

const SVG = "http://www.w3.org/2000/svg";
const KINDS = { graded: "Graded", score_only: "Score only, no grade", unable: "Unable to assess" };
const MOST_ON_PAPER = { rows: 16, steps: 4 }; // of visits, so that one page holds all
const LEFT = 6;
const WIDTH = 316;

const number = (value, digits = 1) =>
  (value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−"));
const percent = (value) => (value === null ? "–" : `${number(value, value < 9.95 ? 1 : 0)} %`);
const signed = (value) => (value > 0 ? `+${number(value, 2)}` : number(value, 2));
const interval = ([low, high]) => (low === null ? "–" : `${number(low, 0)} to ${number(high, 0)} %`);

function drawn(tag, values, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(values)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Show the answer about a visit; `session` is what the server says of its model. */
export function showAnswer(answer, session) {
  document.body.dataset.kind = answer.kind;
  at("empty").hidden = true;
  at("answer").hidden = false;
  at("patient").textContent = answer.patient;
  at("visitDate").textContent = answer.date;
  at("kind").textContent = `${KINDS[answer.kind]} · ${answer.num_used} of ${answer.num_frames} frames used`;
  at("grade").textContent = answer.grade || (answer.kind === "score_only" ? "No grade" : "No answer");
  at("said").textContent = inWords(answer, session);
  at("reason").hidden = !answer.reason;
  at("reason").textContent = answer.reason;
  const placed = answer.frames.filter((frame) => frame.by_person).length;
  at("byPerson").hidden = !placed;
  at("byPerson").textContent = `The sector of ${placed} ${placed === 1 ? "frame was" : "frames were"} placed by a person, and the answer read anew.`;
  showFat(answer, session);
  showChances(answer, session);
  at("made").hidden = false;
  at("made").textContent = `Model ${session.model.name}, SHA-256 ${session.model.sha256.slice(0, 16)}…`
    + (answer.novelty === null ? ""
      : ` Distance from the training data: ${number(answer.novelty, 2)} (grades end at 1).`);
}

function inWords({ kind, grade, prediction_set: kept }, { set_coverage: coverage }) {
  if (kind !== "graded") return "";
  const others = kept.filter((one) => one !== grade);
  const share = `${number(100 * coverage, 0)} % prediction set`;
  return others.length
    ? `Cannot be told from ${others.join(" and ")} (${share}: ${kept.join(", ")}).`
    : `The only grade in the ${share}.`;
}

// ---- fat on a scale ------------------------------------------------------------------------------

// As the square root, in which the score is made: else all grades but one crowd at the left.
const along = (fat) => LEFT + WIDTH * Math.sqrt(Math.min(Math.max(fat, 0), 100) / 100);

function showFat(answer, session) {
  const { fat_percent: fat, fat_interval: [low, high], kind, grade: given } = answer;
  const { prediction_set: kept, training_rank: rank } = answer;
  at("fat").hidden = fat === null;
  if (fat === null) return;
  const edges = [0, ...session.fat_cuts_percent, 100];
  const parts = kind === "graded" ? []
    : [drawn("rect", { class: "band", x: LEFT, y: 20, width: WIDTH, height: 26, rx: 3 })];
  session.grades.forEach((grade, place) => {
    const [from, to] = [along(edges[place]), along(edges[place + 1])];
    if (kind !== "graded") return; // named bands would be read as a grade
    const isKept = kept.includes(grade) ? " kept" : "";
    parts.push(drawn("rect", { class: `band${isKept}`, x: from + 1, y: 20, width: to - from - 2, height: 26, rx: 3 }));
    parts.push(drawn("text", { class: isKept.trim(), x: (from + to) / 2, y: 13, "text-anchor": "middle" }, grade));
  });
  for (const edge of edges) {
    const anchor = edge === 0 ? "start" : edge === 100 ? "end" : "middle";
    parts.push(drawn("line", { class: "tick", x1: along(edge), x2: along(edge), y1: 48, y2: 53 }));
    parts.push(drawn("text", { x: along(edge), y: 66, "text-anchor": anchor }, `${edge} %`));
  }
  parts.push(drawn("line", { class: "whisker", x1: along(low), x2: along(high), y1: 33, y2: 33 }));
  parts.push(drawn("circle", { class: `point${kind === "graded" ? "" : " hollow"}`, cx: along(fat), cy: 33, r: 6 }));
  at("scaleOfFat").replaceChildren(...parts);
  const words = `Fat score ${percent(fat)}, 90 % interval ${interval([low, high])}`;
  at("scaleOfFat").setAttribute("aria-label", words);
  const band = session.grades[session.fat_cuts_percent.filter((cut, place) => (place ? fat > cut : fat >= cut)).length];
  at("fatText").textContent = `${words}. More than in ${number(100 * rank, 0)} % of the training patients.`
    + (given && band !== given ? ` The score lies in the band of ${band}; the grade is read from the probabilities.` : "");
}

function showChances({ probabilities, grade: given, operating_points: points }, { grades }) {
  const known = grades.filter((grade) => grade in probabilities);
  at("chances").hidden = !known.length;
  const top = known.reduce((best, grade) => (probabilities[grade] > probabilities[best] ? grade : best), known[0]);
  at("ruleText").hidden = !given || given === top;
  at("ruleText").textContent = `${given} is named by the model's decision rule; the most probable grade is ${top}.`;
  at("bars").replaceChildren(...known.flatMap((grade) => {
    const value = probabilities[grade];
    const className = grade === given ? "top" : "";
    const bar = drawn("svg", { viewBox: "0 0 100 9", preserveAspectRatio: "none", "aria-hidden": "true" });
    bar.append(drawn("rect", { class: className, width: 100 * value, height: 9 }));
    return [made("span", { text: grade, className }), made("span", { className: "rail" }, bar),
      made("span", { text: `${number(100 * value, 0)} %`, className: `number ${className}` })];
  }));
  showPoints(points);
}

/** Operating points, `{"at_least_mild, sensitivity 0.95": true}`, as a table: question by threshold. */
function showPoints(points) {
  const parts = Object.keys(points).map((name) => name.split(", "));
  const [questions, thresholds] = [0, 1].map((place) => [...new Set(parts.map((one) => one[place]))]);
  const words = (text) => text.replaceAll("_", " ");
  at("points").hidden = !parts.length;
  at("points").tHead.replaceChildren(made("tr", {}, made("th", { text: "At or over the threshold for" }),
    ...thresholds.map((text) => made("th", { text: words(text ?? "") }))));
  at("points").tBodies[0].replaceChildren(...questions.map((question) => made("tr", {},
    made("td", { text: words(question) }), ...thresholds.map((threshold) => {
      const isOver = points[threshold === undefined ? question : `${question}, ${threshold}`];
      const text = isOver === undefined ? "–" : isOver ? "yes" : "no";
      return made("td", { text, className: isOver ? "over" : "" });
    }))));
}

// ---- features --------------------------------------------------------------------------------------

export function showFeatures(answer, frame, { features: names }) {
  const adds = answer.contributions;
  const rows = Object.keys(adds); // none where nothing was scored: a mean of no frame says nothing
  at("features").hidden = !rows.length;
  at("featureTable").tBodies[0].replaceChildren(...rows.map((name) => {
    const [label, unit] = names[name] ?? [name === "network" ? "Network" : name.replaceAll("_", " "), ""];
    const first = made("td", { text: label }, made("span", { className: "unit", text: unit }));
    const add = adds[name];
    const way = add > 0.005 ? "more" : add < -0.005 ? "less" : "";
    const own = name === "network" ? frame?.network_sqrt_fat : frame?.features[name];
    return made("tr", {}, first, made("td", { text: number(answer.features[name], 2) }),
      made("td", { text: number(own, 2) }),
      made("td", { text: add === undefined ? "–" : signed(add), className: `adds ${way}` }));
  }));
}

export function showFrameFacts(frame, place, total, isOutlier) {
  at("frameFacts").hidden = false;
  at("frameNumber").textContent = `${place + 1} of ${total}: ${frame.name}`;
  const lines = [frame.fat_score === null ? "" : `Fat score of this frame: ${percent(frame.fat_score)}.`];
  if (frame.by_person) lines.push("Its sector was placed by a person.");
  if (isOutlier) lines.push("Of all frames, its score is the farthest from their mean: look at it twice.");
  if (frame.kind === "unable") lines.push(`Not used: ${frame.reason}`);
  else if (frame.kind === "score_only") lines.push(`Unlike the training data: distance ${number(frame.novelty, 2)}, grades end at 1.`);
  else lines.push(frame.boxes.kidney ? "Kidney cortex found." : "No kidney cortex found in this frame.");
  at("frameText").textContent = lines.filter(Boolean).join("\n");
}

/** Words below a thumbnail. */
export const tagOf = (frame, isOutlier) =>
  (isOutlier ? "outlier" : { graded: "used", score_only: "unlike training", unable: "not used" }[frame.kind]);
export const scoreOf = (frame) => percent(frame.fat_score);

// ---- visits ----------------------------------------------------------------------------------------

/** Visits `{date, answer, model}` in the order of their dates; `session` as of `showAnswer`. */
export function showTrend(visits, { change_limit: limit }) {
  at("trend").hidden = visits.length < 2;
  if (visits.length < 2) return;
  at("offPaper").hidden = visits.length <= MOST_ON_PAPER.rows;
  at("offPaper").textContent = `The plot has all ${visits.length} visits, table and words the newest.`;
  const isOff = (place, { length }, most) => ({ className: place < length - most ? "off" : "" });
  at("trendTable").tBodies[0].replaceChildren(...visits.map(({ date, answer, otherModel }, place) => made("tr",
    isOff(place, visits, MOST_ON_PAPER.rows),
    made("td", { text: date || "no date" }), made("td", { text: percent(answer.fat_percent) }),
    made("td", { text: interval(answer.fat_interval) }),
    made("td", { text: `${answer.grade || { score_only: "Score only" }[answer.kind] || "Unable"}${otherModel ? "*" : ""}` }))));
  at("trendText").replaceChildren(...stepsInWords(visits, limit).map((text, place, all) => made("span",
    { text: `${text} `, ...isOff(place, all, MOST_ON_PAPER.steps) })));
  at("otherModel").hidden = !visits.some(({ otherModel }) => otherModel);
  plotTrend(visits.filter(({ date, answer }) => date && answer.fat_percent !== null));
}

/** Sentences, as `tables.Visits` of the package says it: changed only beyond the limit that was measured. */
function stepsInWords(visits, limit) {
  if (limit === null) {
    return ["Whether anything changed is not known: the model holds no repeatability limit, which takes patients"
      + " seen twice; frames of one visit do not give it. Intervals that overlap show no change."];
  }
  const scored = visits.filter(({ answer }) => answer.fat_percent !== null);
  return scored.slice(1).map((later, place) => {
    const earlier = scored[place];
    if (!earlier.date || !later.date) return "Whether it changed is not known: a visit without a date has no order.";
    const step = `since ${earlier.date}`;
    if (earlier.otherModel || later.otherModel) return `Not compared ${step}: another model.`;
    if (earlier.answer.kind !== "graded" || later.answer.kind !== "graded") {
      return `Whether it changed ${step} is not known: a visit is unlike the training data.`;
    }
    const [before, after] = [earlier, later].map(({ answer }) => Math.sqrt(answer.fat_percent));
    return Math.abs(after - before) > limit ? `Changed ${step}, by more than measuring anew does.`
      : `No change shown ${step}, no more than measuring anew does.`;
  });
}

function plotTrend(visits) {
  const days = visits.map(({ date }) => Date.parse(date));
  const [first, last] = [Math.min(...days), Math.max(...days)];
  const x = (day) => 44 + 262 * (last > first ? (day - first) / (last - first) : 0.5);
  const y = (fat) => 96 - 84 * Math.sqrt(Math.min(Math.max(fat, 0), 100) / 100);
  const parts = [0, 5, 33, 66, 100].flatMap((fat) => [
    drawn("line", { class: "tick", x1: 34, x2: 322, y1: y(fat), y2: y(fat) }),
    drawn("text", { x: 30, y: y(fat) + 4, "text-anchor": "end" }, String(fat))]);
  const points = visits.map(({ answer }, place) => [x(days[place]), y(answer.fat_percent), answer]);
  parts.push(drawn("polyline", { class: "thread", points: points.map(([a, b]) => `${a},${b}`).join(" ") }));
  for (const [across, up, answer] of points) {
    const [low, high] = answer.fat_interval;
    parts.push(drawn("line", { class: "whisker", x1: across, x2: across, y1: y(low), y2: y(high) }));
    parts.push(drawn("circle", { class: `point${answer.kind === "graded" ? "" : " hollow"}`, cx: across, cy: up, r: 5 }));
  }
  if (visits.length) parts.push(drawn("text", { x: 34, y: 116 }, visits[0].date));
  if (visits.length > 1) parts.push(drawn("text", { x: 322, y: 116, "text-anchor": "end" }, visits.at(-1).date));
  at("trendPlot").replaceChildren(...parts);
}
