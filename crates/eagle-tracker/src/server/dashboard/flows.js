// What goes from zone to zone: as a square of all pairs, as far as one can be read, and in words.

const Flows = (() => {
// A square of more zones than this does not fit beside its names; the table below has all.
const ZONES = 12;
// Shades of a cell; each half as strong as the next.
const SHADES = 6;

const name = (zone) => [zone.region, zone.zone].filter(Boolean).join(" / ") || "no zone";
const key = (zone) => JSON.stringify([zone.region, zone.zone]);
const within = (flow) => key(flow.from) === key(flow.to);

// The sums of what moves, and of what crosses a boundary.
function sums(flows) {
  const sum = (some) => some.reduce((total, flow) => total + flow.bytes_per_second, 0);
  return { all: sum(flows), between: sum(flows.filter((flow) => !within(flow))) };
}

// The zones that move most, in the order of their names.
function busiest(flows) {
  const zones = new Map();
  for (const flow of flows) {
    for (const zone of [flow.from, flow.to]) {
      const known = zones.get(key(zone)) || { zone, weight: 0 };
      // Bytes tell apart what is still at the moment.
      known.weight += flow.bytes_per_second + flow.bytes / 1e12;
      zones.set(key(zone), known);
    }
  }
  const most = [...zones.values()].sort((a, b) => b.weight - a.weight);
  const shown = most.slice(0, ZONES).map((known) => known.zone).sort((a, b) => name(a).localeCompare(name(b)));
  return { shown, left: most.length - shown.length };
}

function shade(rate, most) {
  if (!rate) return "shade-0";
  return `shade-${Math.max(1, Math.min(SHADES, SHADES + Math.ceil(Math.log2(rate / most))))}`;
}

return { busiest, key, name, shade, sums };
})();
