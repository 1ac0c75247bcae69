// The frame, its outlines and its box: drawing, zooming, dragging. Knows no server and no keys.
// A box is [top, left, height, width] in px of the frame; a fan is eight numbers, see fan.js.

import { CORNERS, dragFan, isFan, outlineOf } from "./fan.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN_PX = 12;
const FOOT_PX = 20; // what the line with zoom and size takes
const HANDLE_PX = 9;
const GRASP_PX = 22;
const EDGE_HANDLES_FROM_PX = 64;
const LEVELS = [0.6, 0.8, 1, 1.3, 1.7, 2.2, 3];

/** Parts of a box that can be dragged: which edges each of them moves (-1 near, 1 far, 0 none). */
const PARTS = {
  whole: [0, 0],
  nw: [-1, -1], n: [-1, 0], ne: [-1, 1], e: [0, 1],
  se: [1, 1], s: [1, 0], sw: [1, -1], w: [0, -1],
};

export const same = (a, b) => a === b || (a && b && a.every((side, at) => side === b[at]));

const between = (value, low, high) => Math.min(Math.max(value, low), high);

/** Start and length after one edge, the other, or both have moved by `shift` px. */
function slide(start, length, edge, shift, limit, least) {
  if (edge === 0) return [Math.round(between(start + shift, 0, limit - length)), length];
  const end = start + length;
  if (edge < 0) {
    const moved = Math.round(between(start + shift, 0, end - least));
    return [moved, end - moved];
  }
  const moved = Math.round(between(end + shift, start + least, limit));
  return [start, moved - start];
}

/** The box after one of its parts was dragged `down` and `right` px, kept inside the frame. */
export function drag(box, part, down, right, frame, least) {
  if (isFan(box)) return dragFan(box, part, down, right);
  const [vertical, horizontal] = PARTS[part];
  const whole = part === "whole";
  const [top, height] = vertical || whole
    ? slide(box[0], box[2], vertical, down, frame.height, least) : [box[0], box[2]];
  const [left, width] = horizontal || whole
    ? slide(box[1], box[3], horizontal, right, frame.width, least) : [box[1], box[3]];
  return [top, left, height, width];
}

/** The box between two points [x, y], at least `least` px a side, kept inside the frame. */
function spanned(from, to, frame, least) {
  const [top, height] = stretch(from[1], to[1], frame.height, least);
  const [left, width] = stretch(from[0], to[0], frame.width, least);
  return [top, left, height, width];
}

function stretch(a, b, limit, least) {
  const start = Math.round(between(Math.min(a, b), 0, limit - least));
  const end = Math.round(between(Math.max(a, b), start + least, limit));
  return [start, end - start];
}

/** A typed box, or null if it is not one inside the frame. */
export function typed(texts, frame, least) {
  const box = texts.map((text) => (/^\s*\d+\s*$/.test(text) ? Number(text) : NaN));
  const [top, left, height, width] = box;
  const fits = height >= least && width >= least
    && top + height <= frame.height && left + width <= frame.width;
  return fits && !box.some(Number.isNaN) ? box : null;
}

export class Stage {
  /** `onEdit(box, isFinal)` is called while and after the box is dragged or drawn. */
  constructor(root, { leastPx, onEdit, mayEdit }) {
    this.root = root;
    this.canvas = root.querySelector("canvas");
    this.svg = root.querySelector("svg");
    this.leastPx = leastPx;
    this.onEdit = onEdit;
    this.mayEdit = mayEdit;
    this.layers = { box: true, sector: true, liver: true };
    this.bare = false;
    this.drawing = false;
    this.part = "whole";
    this.level = LEVELS.indexOf(1);
    this.clear();
    this.#addHandles();
    new ResizeObserver(() => (this.fitted ? this.fit() : this.render())).observe(root);
    this.svg.addEventListener("pointerdown", (event) => this.#grasp(event));
    root.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, [event.offsetX, event.offsetY]);
    }, { passive: false });
  }

  clear() {
    this.frame = null;
    this.box = this.before = null;
    this.outlines = {};
    this.canvas.hidden = true;
    this.fitted = true;
    this.render();
  }

  /** Show a bitmap of a frame of `frame.height` x `frame.width` px; the zoom stays for its like. */
  show(bitmap, frame) {
    const alike = this.frame?.height === frame.height && this.frame?.width === frame.width;
    this.frame = frame;
    this.outlines = {};
    this.canvas.width = bitmap.width;
    this.canvas.height = bitmap.height;
    this.canvas.getContext("2d").drawImage(bitmap, 0, 0);
    this.canvas.hidden = false;
    if (alike && !this.fitted) this.render();
    else this.fit();
  }

  /** `fan` says of what kind a fan is; a box needs none. */
  setBox(box, before, fan = this.fan) {
    this.fan = fan;
    this.box = box;
    this.before = before;
    this.render();
  }

  setOutlines(outlines) {
    this.outlines = outlines;
    this.render();
  }

  /** Whether the frame is shown without what is drawn on it. */
  setBare(isBare) {
    this.bare = isBare;
    this.render();
  }

  fit() {
    this.fitted = true;
    const { clientWidth, clientHeight } = this.root;
    if (!this.frame || !clientWidth) return; // on paper the stage is not shown
    const room = Math.min((clientWidth - 2 * MARGIN_PX) / this.frame.width,
      (clientHeight - 2 * MARGIN_PX - FOOT_PX) / this.frame.height);
    this.#look(Math.min(room, 3));
  }

  /** One px of the frame to one px of the screen, or back to the whole frame. */
  toggleFull() {
    if (!this.frame) return;
    if (!this.fitted) return this.fit();
    this.fitted = false;
    const centre = this.box && !isFan(this.box) && [this.box[1] + this.box[3] / 2, this.box[0] + this.box[2] / 2];
    this.#look(1, centre || undefined);
  }

  zoom(factor, at = [this.root.clientWidth / 2, this.root.clientHeight / 2]) {
    if (!this.frame) return;
    this.fitted = false;
    const scale = Math.min(Math.max(this.scale * factor, 0.05), 16);
    this.x = at[0] - (at[0] - this.x) * scale / this.scale;
    this.y = at[1] - (at[1] - this.y) * scale / this.scale;
    this.scale = scale;
    this.render();
  }

  brighten(step) {
    this.level = Math.min(Math.max(this.level + step, 0), LEVELS.length - 1);
    this.canvas.style.filter = LEVELS[this.level] === 1 ? "" : `brightness(${LEVELS[this.level]})`;
    this.render();
  }

  /** The next corner for the arrow keys; after the last one, the whole box again. */
  nextPart() {
    const parts = ["whole", "nw", "ne", "se", "sw"];
    this.part = parts[(parts.indexOf(this.part) + 1) % parts.length];
    this.render();
  }

  #look(scale, centre = [this.frame.width / 2, this.frame.height / 2]) {
    this.scale = scale;
    this.x = Math.round(this.root.clientWidth / 2 - centre[0] * scale);
    this.y = Math.round((this.root.clientHeight - FOOT_PX) / 2 - centre[1] * scale);
    this.render();
  }

  #addHandles() {
    for (const part of Object.keys(PARTS).filter((name) => name !== "whole")) {
      const group = document.createElementNS(SVG, "g");
      group.dataset.part = part;
      for (const side of [GRASP_PX, HANDLE_PX]) {
        const rect = document.createElementNS(SVG, "rect");
        for (const [name, value] of [["x", -side / 2], ["y", -side / 2], ["width", side], ["height", side]])
          rect.setAttribute(name, value);
        rect.setAttribute("class", side === GRASP_PX ? "grasp" : "handle");
        group.append(rect);
      }
      this.svg.querySelector("#handles").append(group);
    }
    for (const shape of this.svg.querySelectorAll(".box")) shape.dataset.part = "whole";
  }

  render() {
    const { frame, svg } = this;
    svg.style.display = frame ? "" : "none";
    this.root.querySelector("#scale").textContent = frame ? `${Math.round(this.scale * 100)} %` : "";
    this.root.querySelector("#size").textContent = frame ? `${frame.width} × ${frame.height} px` : "";
    this.root.querySelector("#level").textContent =
      frame && LEVELS[this.level] !== 1 ? `brightness × ${LEVELS[this.level]}` : "";
    if (!frame) return;
    const zoom = this.scale * frame.width / this.canvas.width;
    this.canvas.style.transform = `translate(${this.x}px, ${this.y}px) scale(${zoom})`;
    this.canvas.classList.toggle("pixels", zoom > 3);
    svg.classList.toggle("bare", this.bare);
    svg.classList.toggle("drawing", this.drawing || (!this.box && this.mayEdit()));
    this.#renderOutlines();
    this.#renderBox();
  }

  #renderOutlines() {
    for (const name of ["sector", "liver"]) {
      const path = this.svg.querySelector(`path.${name}`);
      const polygons = this.layers[name] ? this.outlines[name] ?? [] : [];
      path.setAttribute("d", polygons.map((points) => `M${points.map(([x, y]) =>
        `${((x + 0.5) * this.scale + this.x).toFixed(1)} ${((y + 0.5) * this.scale + this.y).toFixed(1)}`
      ).join("L")}Z`).join(""));
    }
  }

  #renderBox() {
    const shown = this.layers.box ? this.box : null;
    for (const name of ["box", "halo"]) this.#place(name, shown);
    this.#place("before", this.layers.box ? this.before : null);
    for (const group of this.svg.querySelectorAll("#handles g")) {
      const [vertical, horizontal] = PARTS[group.dataset.part];
      if (isFan(shown)) {
        this.#placeCorner(group, shown);
        continue;
      }
      // On a box that is small on the screen, handles on the edges would hide what is inside.
      const isEdge = !vertical || !horizontal;
      const along = shown && (vertical ? shown[3] : shown[2]) * this.scale;
      const isShown = shown && this.mayEdit() && !(isEdge && along < EDGE_HANDLES_FROM_PX);
      group.style.display = isShown ? "" : "none";
      group.classList.toggle("active", group.dataset.part === this.part);
      if (!isShown) continue;
      const x = this.x + (shown[1] + shown[3] * (horizontal + 1) / 2) * this.scale;
      const y = this.y + (shown[0] + shown[2] * (vertical + 1) / 2) * this.scale;
      group.setAttribute("transform", `translate(${x} ${y})`);
    }
  }

  #placeCorner(group, fan) {
    const corner = CORNERS[group.dataset.part];
    const isShown = corner !== undefined && this.mayEdit();
    group.style.display = isShown ? "" : "none";
    group.classList.toggle("active", group.dataset.part === this.part);
    if (isShown) group.setAttribute("transform", `translate(${this.#onScreen(fan.slice(2 * corner)).join(" ")})`);
  }

  /** Where on the screen the middle of a px of the frame is. */
  #onScreen([x, y]) {
    return [(x + 0.5) * this.scale + this.x, (y + 0.5) * this.scale + this.y];
  }

  #place(name, box) {
    const path = this.svg.querySelector(`path.${name}`);
    path.style.display = isFan(box) ? "" : "none";
    const rect = this.svg.querySelector(`rect.${name}`);
    rect.style.display = box && !isFan(box) ? "" : "none";
    if (isFan(box)) {
      const points = outlineOf(box, this.fan).map((point) => this.#onScreen(point).join(" "));
      path.setAttribute("d", `M${points.join("L")}Z`);
    }
    if (!box || isFan(box)) return;
    rect.setAttribute("x", this.x + box[1] * this.scale);
    rect.setAttribute("y", this.y + box[0] * this.scale);
    rect.setAttribute("width", box[3] * this.scale);
    rect.setAttribute("height", box[2] * this.scale);
  }

  #grasp(event) {
    if (!this.frame || event.button > 1) return;
    event.preventDefault();
    const from = [event.clientX, event.clientY];
    const start = { box: this.box, x: this.x, y: this.y, point: this.#pointOf(event) };
    const part = event.target.closest("[data-part]")?.dataset.part;
    const draws = this.mayEdit() && event.button === 0 && !isFan(this.box) && (this.drawing || !this.box);
    const drags = this.mayEdit() && event.button === 0 && !draws && part && this.layers.box;
    let moved = false;
    const move = (now) => {
      const right = now.clientX - from[0];
      const down = now.clientY - from[1];
      moved ||= Math.hypot(right, down) > 3; // a click is not a drag of a px or two
      if (!moved) return;
      if (draws) this.onEdit(spanned(start.point, this.#pointOf(now), this.frame, this.leastPx), false);
      else if (drags) {
        const { scale, frame, leastPx } = this;
        this.onEdit(drag(start.box, part, down / scale, right / scale, frame, leastPx), false);
      } else {
        this.fitted = false;
        [this.x, this.y] = [start.x + right, start.y + down];
        this.render();
      }
    };
    const end = () => {
      this.svg.removeEventListener("pointermove", move);
      this.svg.removeEventListener("pointerup", end);
      this.svg.removeEventListener("pointercancel", end);
      if (drags) this.part = part;
      if (moved && (draws || drags)) {
        this.drawing = false;
        this.onEdit(this.box, true);
      }
      this.render();
    };
    this.svg.setPointerCapture(event.pointerId);
    this.svg.addEventListener("pointermove", move);
    this.svg.addEventListener("pointerup", end);
    this.svg.addEventListener("pointercancel", end);
  }

  #pointOf(event) {
    const { left, top } = this.root.getBoundingClientRect();
    return [(event.clientX - left - this.x) / this.scale, (event.clientY - top - this.y) / this.scale];
  }
}
