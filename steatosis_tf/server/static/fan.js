// The fan of a frame that is seen in beam space, by its corners: x and y in px of near left, near
// right, far right, far left, eight numbers. The same as Fan.with_corners in Python.

const STEPS = 32;
/** Which corner each handle is. */
export const CORNERS = { nw: 0, ne: 1, se: 2, sw: 3 };

/** Whether a shape is a fan and not a box. */
export const isFan = (shape) => shape?.length === 8;

/** The fan after a corner, or all of it, was dragged. */
export function dragFan(corners, part, down, right) {
  const only = CORNERS[part];
  return corners.map((value, at) => {
    if (only !== undefined && at >> 1 !== only) return value;
    return Math.round(10 * (value + (at % 2 ? down : right))) / 10;
  });
}

/** Points [x, y] of the outline; the corners alone if they are no fan's. */
export function outlineOf(corners, { kind, row_stretch: stretch }) {
  const points = [0, 2, 4, 6].map((at) => [corners[at], corners[at + 1]]);
  if (kind === "linear") return levelled(points);
  const [nearLeft, nearRight, farRight, farLeft] = points.map(([x, y]) => [x, y / stretch]);
  const left = minus(farLeft, nearLeft);
  const right = minus(farRight, nearRight);
  const cross = left[0] * right[1] - left[1] * right[0];
  if (Math.abs(cross) < 1e-9) return points;
  const between = minus(nearRight, nearLeft);
  const along = (between[0] * right[1] - between[1] * right[0]) / cross;
  const apex = [nearLeft[0] + along * left[0], nearLeft[1] + along * left[1]];
  const radius = (corner, side) => dot(minus(corner, apex), side) / Math.hypot(...side);
  const near = (radius(nearLeft, left) + radius(nearRight, right)) / 2;
  const far = (radius(farLeft, left) + radius(farRight, right)) / 2;
  const first = Math.atan2(left[0], left[1]);
  const last = Math.atan2(right[0], right[1]);
  if (near < 0 || far <= near || first >= last) return points;
  const arc = (length, from, to) => Array.from({ length: STEPS + 1 }, (_, step) => {
    const angle = from + (to - from) * step / STEPS;
    return [apex[0] + length * Math.sin(angle), (apex[1] + length * Math.cos(angle)) * stretch];
  });
  return [...arc(near, first, last), ...arc(far, last, first)];
}

/** A linear probe's sector has level and upright sides. */
function levelled([nearLeft, nearRight, farRight, farLeft]) {
  const [near, far] = [(nearLeft[1] + nearRight[1]) / 2, (farLeft[1] + farRight[1]) / 2];
  const [left, right] = [(nearLeft[0] + farLeft[0]) / 2, (nearRight[0] + farRight[0]) / 2];
  return [[left, near], [right, near], [right, far], [left, far]];
}

const minus = (a, b) => [a[0] - b[0], a[1] - b[1]];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1];
