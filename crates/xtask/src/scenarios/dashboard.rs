//! The tracker's dashboard in a real browser.

use anyhow::{Result, ensure};

use super::{Scene, pulls::pull};
use crate::{
    browser::Browser,
    cluster::{Cluster, Settings},
    http,
};

/// WebDriver's code points of the keys (17.4.2).
const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";
/// A picture of an empty page has fewer bytes.
const LEAST_PICTURE: usize = 10_000;

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
