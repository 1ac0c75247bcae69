// A box is [top, left, height, width] in px of the frame. Pure functions, no page.

/** Parts of a box that can be dragged: which edges each of them moves (-1 near, 1 far, 0 none). */
export const PARTS = {
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
  const [vertical, horizontal] = PARTS[part];
  const whole = part === "whole";
  const [top, height] = vertical || whole
    ? slide(box[0], box[2], vertical, down, frame.height, least) : [box[0], box[2]];
  const [left, width] = horizontal || whole
    ? slide(box[1], box[3], horizontal, right, frame.width, least) : [box[1], box[3]];
  return [top, left, height, width];
}

/** The box between two points [x, y], at least `least` px a side, kept inside the frame. */
export function spanned(from, to, frame, least) {
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
