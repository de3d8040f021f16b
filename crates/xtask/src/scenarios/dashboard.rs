//! The tracker's dashboard in a real browser.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Scene, pulls::pull};
use crate::{
    browser::Browser,
    cluster::{Cluster, Role, Settings},
    http,
};

/// WebDriver's code points of the keys (17.4.2).
const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";
/// A picture of an empty page has fewer bytes.
const LEAST_PICTURE: usize = 10_000;
/// As many nodes as a swarm is drawn with.
const NODES: usize = 1_000;
const PIECES: usize = 512;

pub(super) fn dashboard(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    // With a key: the API of nodes is closed to browsers, the admin address of this machine is not.
    let cluster = Cluster::start(scene, registry.address(), Settings { nodes: 2, ..Settings::default() })?;
    pull(cluster.proxy(0), scene.image)?;
    pull(cluster.proxy(1), scene.image)?;
    let tracker = cluster.tracker.ready.admin;
    ensure!(http::request(tracker, "GET", "/v1/nothing", &[])?.status == 404);
    ensure!(http::request(tracker, "POST", "/v1/announce", &[])?.status == 404, "no announce at the admin address");
    let foreign = [("Origin", "http://example.org"), ("Sec-Fetch-Site", "cross-site")];
    for (name, value) in foreign {
        ensure!(http::request(tracker, "GET", "/v1/overview", &[(name, value)])?.status == 403, "{name}: {value}");
    }

    let browser = Browser::start(&scene.directory.join("browser"))?;
    browser.open(&format!("http://{tracker}/"))?;
    let blobs = browser.wait(
        "the swarms are listed",
        "const rows = document.querySelectorAll('tbody a'); return rows.length >= 3 && rows.length",
    )?;
    let expected = scene.image.blobs().count();
    ensure!(blobs.as_u64() == Some(u64::try_from(expected)?), "{blobs} swarms are shown, {expected} blobs were pulled");
    let part = browser.script("return document.getElementById('view').textContent.includes('a memory of its own')")?;
    ensure!(part == true, "the page does not say that it may show a part");
    let nodes = browser.script("return document.querySelector('.tile b').textContent")?;
    ensure!(nodes == "3", "{nodes} nodes are shown, not a seeder and two proxies");
    let picture = |name: &str| -> Result<()> {
        let size = browser.screenshot(&scene.directory.join(name))?;
        ensure!(size > LEAST_PICTURE, "the picture {name} has {size} bytes");
        Ok(())
    };
    picture("swarms.png")?;

    // By keyboard alone: the first link of the table, and what is behind it.
    browser.script("document.getElementById('view').focus()")?;
    let focused = "document.activeElement.getAttribute('href') || ''";
    for _ in 0..8 {
        browser.press(TAB)?;
        if browser.script(&format!("return ({focused}).startsWith('#/swarm/')"))? == true {
            break;
        }
    }
    let link = browser.script(&format!("return {focused}"))?;
    ensure!(link.as_str().is_some_and(|link| link.starts_with("#/swarm/")), "the keyboard reaches {link}");
    browser.press(ENTER)?;
    let drawn = "const map = document.querySelector('canvas'); if (!map) return null; \
        const { data } = map.getContext('2d').getImageData(0, 0, map.width, map.height); \
        return [map.width, map.height, new Set(Array.from({ length: data.length / 4 }, (_, at) => data.slice(4 * at, 4 * at + 3).join())).size]";
    let map = browser.wait("the map of pieces is drawn", drawn)?;
    ensure!(map[1] == 3, "the map has {} rows, not a seeder and two proxies", map[1]);
    ensure!(map[2] == 2, "all own everything: the seeder's colour and that of proxies, and {} are seen", map[2]);
    picture("pieces.png")?;

    browser.script("document.getElementById('theme').click()")?;
    let dark = "return getComputedStyle(document.documentElement).colorScheme";
    let before = browser.script(dark)?;
    browser.script("document.getElementById('theme').click()")?;
    ensure!(browser.script(dark)? != before, "dark and light look the same");

    for (view, shown) in [("nodes", "tbody a"), ("topology", ".square td")] {
        browser.open(&format!("http://{tracker}/#/{view}"))?;
        browser.wait(view, &format!("return document.querySelector('{shown}') !== null"))?;
        picture(&format!("{view}.png"))?;
    }
    // What the proxies received is reported within seconds of the pulls, and the page shows what the tracker says.
    let flows = browser.wait(
        "the flows are those of the tracker",
        "return fetch('/v1/topology').then((answer) => answer.json()).then(({ flows }) => { \
            const shown = [...document.querySelectorAll('.square td')].map((cell) => cell.title); \
            return flows.length && flows.every((flow) => flow.bytes > 0) && shown.some((text) => text.endsWith('so far')) && flows.length; })",
    )?;
    ensure!(flows == 1, "{flows} flows are shown; the nodes have no labels");
    let wide = browser.script("return document.documentElement.scrollWidth <= innerWidth")?;
    ensure!(wide == true, "the page is wider than the window");
    a_thousand_nodes(scene, &browser)?;
    browser.open(&format!("http://{tracker}/"))?;
    let problems = browser.problems()?;
    ensure!(problems.is_empty(), "the browser's console: {problems:?}");

    // A tracker that is gone is said to be.
    let Cluster { mut tracker, .. } = cluster;
    tracker.stop()?;
    browser.wait(
        "the page says that it is old",
        "return document.getElementById('live').textContent === 'not up to date'",
    )?;
    Ok(())
}

/// A tracker without a key, so that this one may announce what it likes: nodes that own more and more of a blob.
fn a_thousand_nodes(scene: &Scene<'_>, browser: &Browser) -> Result<()> {
    let config = "cluster:\n  insecure: false\ntracker:\n  listen: 127.0.0.1:0\n  admin: 127.0.0.1:0\n";
    let tracker = Role::start(scene.eagle, "tracker", &scene.directory.join("large"), config)?;
    let digest = format!("sha256:{:064x}", 7);
    for number in 0..NODES {
        let role = if number == 0 { "seeder" } else { "proxy" };
        let topology = json!({ "region": null, "zone": format!("zone{}", number % 10), "rack": null });
        let announce = json!({
            "node": { "id": format!("node{number}"), "address": "127.0.0.1:61007", "role": role, "topology": topology },
            "full": true,
            "blobs": [{
                "digest": digest,
                "geometry": { "size": PIECES << 20, "piece_length": 1 << 20 },
                "pieces": { "prefix": number * PIECES / NODES },
                "event": "started",
            }],
        });
        let (path, json) = ("/v1/announce", [("Content-Type", "application/json")]);
        let body = serde_json::to_vec(&announce)?;
        let answer = http::request_with_body(tracker.ready.listen, "POST", path, &json, &body)?;
        ensure!(answer.status == 200, "the tracker answered {}", answer.status);
    }
    browser.open(&format!("http://{}/#/swarm/{digest}", tracker.ready.admin))?;
    let drawn = "const map = document.querySelector('canvas'); return map && [map.width, map.height]";
    let map = browser.wait("the map of all of them is drawn", drawn)?;
    ensure!(map == json!([PIECES, NODES]), "the map has {map} columns and rows");
    let updated = "const text = document.getElementById('live').textContent; return text.startsWith('updated')";
    let first = browser.wait("the time of the first look is shown", &format!("{updated} && text"))?;
    browser.wait("there is a later look", &format!("{updated} && text !== {first}"))?;
    browser.open(&format!("http://{}/#/nodes", tracker.ready.admin))?;
    browser.wait("a page of them is listed", "return document.querySelectorAll('tbody a').length === 100")?;
    Ok(())
}
