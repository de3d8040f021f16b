// What peers own of a blob: reading it as the API writes it, and drawing it.

const Pieces = (() => {
// Bits of a set of pieces, one byte each; a set that does not fit is read as far as it goes.
function bits(set, count) {
  const owned = new Uint8Array(count);
  if (set === "complete") owned.fill(1);
  else if (set && typeof set === "object") {
    if (Number.isInteger(set.prefix)) owned.fill(1, 0, Math.min(set.prefix, count));
    if (Array.isArray(set.runs)) {
      let at = 0;
      set.runs.forEach((length, place) => {
        if (place % 2 === 1) owned.fill(1, Math.min(at, count), Math.min(at + length, count));
        at += length;
      });
    }
    if (typeof set.bitmap === "string") {
      const bytes = atob(set.bitmap);
      for (let piece = 0; piece < count && piece >> 3 < bytes.length; piece++) {
        owned[piece] = (bytes.charCodeAt(piece >> 3) >> (7 - (piece & 7))) & 1;
      }
    }
  }
  return owned;
}

// Draws pieces from left to right and peers from top to bottom. Where there are more pieces than columns, a column
// is as full as the part of its pieces that the peer owns.
function draw(canvas, members, count) {
  const columns = Math.max(1, Math.min(count, 1024));
  const rows = Math.max(1, members.length);
  canvas.width = columns;
  canvas.height = rows;
  const height = Math.max(2, Math.min(18, Math.floor(560 / rows)));
  canvas.style.height = `${rows * height}px`;
  const style = getComputedStyle(document.documentElement);
  const color = (name) => {
    const hex = style.getPropertyValue(name).trim();
    return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  };
  const [have, lack, seeder] = [color("--have"), color("--lack"), color("--seeder")];
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  members.forEach((member, row) => {
    const owned = bits(member.owned, count);
    const full = member.role === "seeder" ? seeder : have;
    for (let column = 0; column < columns; column++) {
      const first = Math.floor((column * count) / columns);
      const last = Math.max(first + 1, Math.floor(((column + 1) * count) / columns));
      let sum = 0;
      for (let piece = first; piece < last; piece++) sum += owned[piece];
      const share = sum / (last - first);
      const at = (row * columns + column) * 4;
      for (let part = 0; part < 3; part++) image.data[at + part] = lack[part] + (full[part] - lack[part]) * share;
      image.data[at + 3] = 255;
    }
  });
  context.putImageData(image, 0, 0);
}

// How many of the peers own the piece that fewest and the one that most of them own.
function availability(members, count) {
  const owners = new Uint32Array(count);
  for (const member of members) {
    const owned = bits(member.owned, count);
    for (let piece = 0; piece < count; piece++) owners[piece] += owned[piece];
  }
  let [least, most] = [Infinity, 0];
  for (const number of owners) {
    least = Math.min(least, number);
    most = Math.max(most, number);
  }
  return count ? { least, most } : { least: 0, most: 0 };
}

return { availability, draw };
})();
