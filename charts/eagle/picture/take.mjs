// Opens the page that `vite build` made, in Chromium, and takes its picture once everything is drawn.
// What follows the name of the file goes to the page: prometheus=URL scrape=SECONDS from=TIME to=TIME namespace=REGEX

import { launch } from "puppeteer-core";
import { preview } from "vite";

const SIZE = { width: 1600, height: 900 };
const DEADLINE = 60_000;

const [file, ...words] = process.argv.slice(2);
if (!file) {
  throw new Error("node take.mjs FILE [prometheus=URL] [scrape=SECONDS] [from=TIME] [to=TIME] [namespace=REGEX]");
}
const server = await preview({ preview: { host: "127.0.0.1" } });
const browser = await launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  // Chromium does not start as root with its sandbox; the page is our own.
  args: process.getuid() === 0 ? ["--no-sandbox"] : [],
});
try {
  const page = await browser.newPage();
  await page.setViewport(SIZE);
  const problems = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  const parameters = new URLSearchParams(words.map((word) => word.split(/=(.*)/s, 2)));
  await page.goto(`${server.resolvedUrls.local[0]}?${parameters}`, { waitUntil: "networkidle0", timeout: DEADLINE });
  // Charts draw themselves in the frame after they were put into the page.
  await page.evaluate(() => new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(next))));
  const charts = await page.$$(".uplot canvas");
  if (problems.length > 0 || charts.length === 0) {
    throw new Error(problems.join("\n") || "the page has no chart");
  }
  await page.screenshot({ path: file, fullPage: true });
  console.log(`${file}: ${charts.length} charts`);
} finally {
  await browser.close();
  await server.close();
}
