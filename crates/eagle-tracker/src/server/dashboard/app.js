// The dashboard of a tracker. Text from the API goes into the page as text, never as markup.
// Not a module: browsers ask for modules with an Origin, and the admin address refuses whatever has one.

"use strict";

const { availability, draw } = Pieces;

const EVERY = 2000;
const DEADLINE = 10000;
const PAGE = 100;
// A map of more peers than this has rows that cannot be told apart.
const MAP = 1000;
const PART = "This tracker has a memory of its own. Where there are several of them, it shows all nodes and rates, and the swarms that it is the first " +
  "for; of the other swarms it has the seeders alone. \u201ceagle top --config FILE\u201d shows the whole.";

const view = document.getElementById("view");
const live = document.getElementById("live");
let paused = false;
let timer = 0;
// Grows with each change of view, so that an answer to the last one is dropped.
let turn = 0;

function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function s(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const numbers = new Intl.NumberFormat("en");
const number = (value) => numbers.format(value);

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${unit ? value.toFixed(1) : value} ${units[unit]}`;
}

function time(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

function short(name) {
  const colon = name.indexOf(":");
  return colon < 0 ? `${name.slice(0, 8)}…${name.slice(-6)}` : `${name.slice(0, colon + 13)}…`;
}

const rate = (value) => (value ? `${bytes(value)}/s` : "—");
const place = (topology) => [topology.region, topology.zone, topology.rack].filter(Boolean).join(" / ") || "—";
const swarmLink = (digest) => h("a", { href: `#/swarm/${digest}`, title: digest, class: "mono" }, short(digest));
const nodeLink = (peer) =>
  h("a", { href: `#/node/${peer.id}`, title: peer.id, class: peer.role === "seeder" ? "mono seeder" : "mono" }, short(peer.id));

async function get(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(DEADLINE), cache: "no-store" });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error || `the tracker answered ${response.status}`);
  return body;
}

function tile(name, value, bad) {
  return h("div", { class: bad ? "tile bad" : "tile" }, h("b", {}, String(value)), h("span", {}, name));
}

function table(caption, columns, rows, empty) {
  const head = columns.map(([name, kind]) => h("th", { scope: "col", class: kind }, name));
  const body = rows.map((cells) => h("tr", {}, cells.map((cell, at) => h("td", { class: columns[at][1] }, cell))));
  if (!rows.length) body.push(h("tr", {}, h("td", { colspan: columns.length, class: "dim" }, empty)));
  const inner = h("table", {}, h("caption", {}, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, body));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, inner);
}

function bar(share) {
  const percent = Math.floor(share * 100);
  return h("span", {}, h("progress", { max: 1, value: share, "aria-label": `${percent} %` }), ` ${percent} %`);
}

async function overview() {
  const page = await get("/v1/overview");
  const tiles = [
    tile("nodes", number(page.peers)),
    tile("of them seeders", number(page.seeders), page.seeders === 0),
    tile("blobs", number(page.blobs)),
    tile("pairs of blob and node", number(page.entries)),
    tile("moving", rate(page.bytes_per_second)),
    tile("announces a second", page.announces_per_second.toFixed(1)),
    tile("state in", page.store.away ? `${page.store.kind}: away` : page.store.kind, page.store.away),
    tile("up", time(page.uptime_seconds)),
    tile("version", page.version),
  ];
  const rows = page.active.map((swarm) => [
    swarmLink(swarm.digest),
    bytes(swarm.geometry.size),
    number(swarm.peers),
    number(swarm.seeders),
    number(swarm.complete),
    bar(swarm.progress),
    rate(swarm.bytes_per_second),
    time(swarm.changed_seconds),
  ]);
  const columns = [
    ["blob", ""], ["size", "number"], ["nodes", "number"], ["seeders", "number"], ["complete", "number"],
    ["pieces owned", ""], ["moving", "number"], ["last change", "number"],
  ];
  return [
    h("h2", {}, "Cluster"),
    h("div", { class: "tiles" }, tiles),
    h("h2", {}, "Swarms"),
    // Whether there are others, a tracker does not know.
    page.store.kind === "memory" ? h("p", { class: "dim" }, PART) : null,
    table("The swarms that changed last, the latest first", columns, rows, "No node has announced a blob yet."),
  ];
}

async function swarm(digest) {
  const page = await get(`/v1/swarms/${encodeURIComponent(digest)}?pieces=true&limit=${MAP}`);
  // Those that have most come first: the map then shows how the pieces spread.
  const members = page.members.sort((a, b) => (a.role === b.role ? b.pieces - a.pieces : a.role === "seeder" ? -1 : 1));
  const { least, most } = availability(members, page.pieces);
  const shown = page.next ? `the first ${number(members.length)} of ${number(page.peers)} nodes` : `all ${number(page.peers)} nodes`;
  const about = `Pieces 1 to ${number(page.pieces)} from left to right, ${shown} from top to bottom. ` +
    `The rarest piece is at ${number(least)} nodes, the most common one at ${number(most)}.`;
  const canvas = h("canvas", { role: "img", "aria-label": about });
  const rows = members.slice(0, PAGE).map((peer) => [
    nodeLink(peer),
    peer.role,
    place(peer.topology),
    bar(page.pieces ? peer.pieces / page.pieces : 1),
    rate((peer.senders || []).reduce((sum, sender) => sum + sender.bytes_per_second, 0)),
    senders(peer.senders || []),
    time(peer.age_seconds),
    time(peer.last_announce_seconds),
  ]);
  const columns = [
    ["node", ""], ["role", ""], ["place", ""], ["pieces owned", ""], ["gets", "number"], ["most from", ""], ["joined", "number"],
    ["last announce", "number"],
  ];
  draw(canvas, members, page.pieces);
  return [
    h("h2", { class: "mono" }, page.digest),
    h("div", { class: "tiles" }, [
      tile("size", bytes(page.geometry.size)),
      tile("pieces", `${number(page.pieces)} × ${bytes(page.geometry.piece_length)}`),
      tile("nodes", number(page.peers)),
      tile("seeders", number(page.seeders)),
      tile("complete", number(page.complete)),
      tile("pieces owned", `${Math.floor(page.progress * 100)} %`),
      tile("moving", rate(page.bytes_per_second)),
      tile("first announced", time(page.age_seconds)),
      tile("rarest piece at", number(least), least === 0),
    ]),
    h("h2", {}, "Piece map"),
    h("p", { class: "dim" }, about),
    h("div", { class: "legend" },
      h("span", {}, h("i", { class: "have" }), "owned"), h("span", {}, h("i", { class: "of-seeder" }), "owned by a seeder"),
      h("span", {}, h("i", { class: "lack" }), "lacked")),
    canvas,
    h("h2", {}, "Nodes"),
    table(members.length > PAGE ? `The ${PAGE} that own most` : "Those that own most first", columns, rows, "No node."),
  ];
}

// The first of those that a node gets a blob from; the others are counted.
function senders(all) {
  const links = all.slice(0, 2).flatMap((sender) => [nodeLink(sender), ` ${rate(sender.bytes_per_second)} `]);
  return h("span", {}, links, all.length > 2 ? `and ${all.length - 2} more` : "");
}

async function nodes(after) {
  const query = after ? `&after=${encodeURIComponent(after)}` : "";
  const page = await get(`/v1/peers?limit=${PAGE}${query}`);
  const rows = page.peers.map((peer) => [
    nodeLink(peer),
    peer.role,
    peer.address,
    place(peer.topology),
    number(peer.blobs),
    rate(peer.activity.received_bytes_per_second),
    rate(peer.activity.sent_bytes_per_second),
    peer.activity.load ? number(peer.activity.load.requests) : "—",
    time(peer.age_seconds),
    time(peer.last_announce_seconds),
  ]);
  const columns = [
    ["node", ""], ["role", ""], ["address", "mono"], ["place", ""], ["blobs", "number"], ["gets", "number"], ["gives", "number"],
    ["queue", "number"], ["known for", "number"],
    ["last announce", "number"],
  ];
  const links = [];
  if (after) links.push(h("a", { href: "#/nodes" }, "First page"), " ");
  if (page.next) links.push(h("a", { href: `#/nodes/${page.next}` }, "Next page"));
  return [h("h2", {}, "Nodes"), table("In the order of their identities", columns, rows, "No node is alive."), h("p", { class: "more" }, links)];
}

async function node(id) {
  const page = await get(`/v1/peers/${encodeURIComponent(id)}?limit=1000`);
  const load = page.activity.load;
  const rows = page.owns.map((blob) => [
    swarmLink(blob.digest),
    bytes(blob.size),
    `${number(blob.owned)} of ${number(blob.pieces)}`,
    bar(blob.pieces ? blob.owned / blob.pieces : 1),
  ]);
  const columns = [["blob", ""], ["size", "number"], ["pieces", "number"], ["owned", ""]];
  return [
    h("h2", { class: "mono" }, page.id),
    h("div", { class: "tiles" }, [
      tile("role", page.role), tile("address", page.address), tile("place", place(page.topology)), tile("blobs", number(page.blobs)),
      tile("gets", rate(page.activity.received_bytes_per_second)), tile("gives", rate(page.activity.sent_bytes_per_second)),
      tile("requests in its queue", load ? number(load.requests) : "—"), tile("free upload slots", load ? number(load.free_slots) : "—"),
      tile("known for", time(page.age_seconds)), tile("last announce", `${time(page.last_announce_seconds)} ago`),
    ]),
    h("h2", {}, "Blobs"),
    table(page.next ? "The first 1,000" : "All of its blobs", columns, rows, "It has announced none."),
  ];
}

function map(zones) {
  const [width, gap, columns] = [230, 20, Math.max(1, Math.min(5, zones.length))];
  const height = 120;
  const svg = s("svg", {
    viewBox: `0 0 ${columns * (width + gap)} ${Math.ceil(zones.length / columns) * (height + gap)}`,
    role: "img", "aria-label": "Zones with their racks; the table below says the same",
  });
  zones.forEach((zone, at) => {
    const [x, y] = [(at % columns) * (width + gap) + 1, Math.floor(at / columns) * (height + gap) + 1];
    const label = (text, dy, kind) => svg.append(Object.assign(s("text", { x: x + 12, y: y + dy, class: kind || "" }), { textContent: text }));
    svg.append(s("rect", { class: "zone", x, y, width, height, rx: 6 }));
    label(zone.zone || "no zone", 24);
    label(`${zone.region ? `${zone.region}, ` : ""}${number(zone.peers)} nodes, of them seeders: ${number(zone.seeders)}`, 42, "small");
    const most = Math.max(...zone.racks.map((rack) => rack.peers), 1);
    const side = Math.min(18, (width - 24) / Math.max(1, Math.min(zone.racks.length, 40)) - 2);
    zone.racks.slice(0, 40).forEach((rack, place) => {
      const tall = 6 + (50 * rack.peers) / most;
      const box = s("rect", { class: "rack", x: x + 12 + place * (side + 2), y: y + height - 10 - tall, width: side, height: tall });
      box.append(Object.assign(s("title", {}), { textContent: `${rack.rack || "no rack"}: ${rack.peers} nodes` }));
      svg.append(box);
    });
  });
  return svg;
}

// What goes between the zones that move most, each row to each column.
function square(flows) {
  const { shown, left } = Flows.busiest(flows);
  const rates = new Map(flows.map((flow) => [Flows.key(flow.from) + Flows.key(flow.to), flow]));
  const most = Math.max(...flows.map((flow) => flow.bytes_per_second), 1);
  const head = shown.map((zone) => h("th", { scope: "col", class: "number" }, Flows.name(zone)));
  const rows = shown.map((from) => h("tr", {}, h("th", { scope: "row" }, Flows.name(from)), shown.map((to) => {
    const flow = rates.get(Flows.key(from) + Flows.key(to));
    const now = flow ? flow.bytes_per_second : 0;
    const same = from === to ? " same" : "";
    const title = flow ? `${bytes(flow.bytes)} so far` : "nothing was reported";
    return h("td", { class: Flows.shade(now, most) + same, title }, rate(now));
  })));
  const caption = `What goes now from the zone of the row to that of the column` + (left ? `; the ${shown.length} that move most` : "");
  const inner = h("table", { class: "square" }, h("caption", {}, caption),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "from \u2193 to \u2192"), head)), h("tbody", {}, rows));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, inner);
}

function flowTable(page) {
  const rows = page.flows.slice(0, PAGE).map((flow) => [
    Flows.name(flow.from), Flows.name(flow.to), rate(flow.bytes_per_second), rate(flow.transfer_bytes_per_second), bytes(flow.bytes),
  ]);
  const columns = [["from", ""], ["to", ""], ["now", "number"], ["one transfer", "number"], ["so far", "number"]];
  const more = page.next || page.flows.length > PAGE ? `The ${PAGE} fastest flows` : "Flows, the fastest first";
  return table(`${more}, as the nodes that receive them report`, columns, rows, "No node has reported what it received.");
}

async function topology() {
  const page = await get("/v1/topology?limit=1000");
  const { all, between } = Flows.sums(page.flows);
  const rows = page.zones.map((zone) => [zone.region || "—", zone.zone || "—", number(zone.peers), number(zone.seeders), number(zone.racks.length)]);
  const columns = [["region", ""], ["zone", ""], ["nodes", "number"], ["seeders", "number"], ["racks", "number"]];
  return [
    h("h2", {}, "Topology"),
    h("div", { class: "tiles" }, [
      tile("moving", rate(all)), tile("of it between zones", rate(between)),
      tile("zones", number(page.zones.length)), tile("flows", page.next ? "over 1,000" : number(page.flows.length)),
    ]),
    page.flows.length ? h("h2", {}, "Flows") : null,
    page.flows.length ? square(page.flows) : null,
    h("h2", {}, "Places"),
    page.zones.length ? map(page.zones) : null,
    h("h2", {}, "Flows in words"),
    flowTable(page),
    h("h2", {}, "Zones"),
    table("Nodes by the labels that they carry", columns, rows, "No node is alive."),
  ];
}

function route() {
  const [, name, ...rest] = location.hash.slice(1).split("/");
  const argument = rest.length ? decodeURIComponent(rest.join("/")) : undefined;
  const routes = { "": overview, swarm, nodes, node, topology };
  const parent = { swarm: "", node: "nodes" }[name] ?? (name || "");
  return { show: () => (routes[name || ""] || overview)(argument), parent };
}

async function refresh() {
  clearTimeout(timer);
  const mine = turn;
  try {
    const content = await route().show();
    if (mine !== turn) return;
    // The place that was scrolled to, and the focus, are kept: a link in a table is found again by where it leads.
    const focused = view.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    view.replaceChildren(...content.filter(Boolean));
    if (focused) [...view.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus({ preventScroll: true });
    live.textContent = `updated ${new Date().toLocaleTimeString()}`;
    live.className = "";
  } catch (error) {
    if (mine !== turn) return;
    live.textContent = "not up to date";
    live.className = "away";
    if (!view.querySelector("h2")) view.replaceChildren(h("p", { class: "problem" }, String(error.message || error)));
  }
  schedule();
}

function schedule() {
  clearTimeout(timer);
  if (!paused && !document.hidden) timer = setTimeout(refresh, EVERY);
}

function navigate() {
  turn++;
  const { parent } = route();
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href") === `#/${parent}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  view.replaceChildren(h("p", { class: "dim" }, "Loading…"));
  view.focus({ preventScroll: true });
  refresh();
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  document.getElementById("theme").textContent = name === "dark" ? "Light" : "Dark";
}

document.getElementById("pause").addEventListener("click", (event) => {
  paused = !paused;
  event.target.setAttribute("aria-pressed", paused);
  event.target.textContent = paused ? "Go on" : "Pause";
  if (paused) clearTimeout(timer);
  else refresh();
});
document.getElementById("theme").addEventListener("click", () => {
  const name = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  theme(name);
  localStorage.setItem("theme", name);
  refresh();
});
document.getElementById("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = document.getElementById("query").value.trim();
  if (query) location.hash = query.includes(":") ? `#/swarm/${query}` : `#/node/${query}`;
});
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : !paused && refresh()));
addEventListener("hashchange", () => location.hash !== "#view" && navigate());
theme(localStorage.getItem("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
navigate();
