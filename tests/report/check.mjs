// Opens a report of `epiphyte compare` or `epiphyte report` in headless Chromium: no errors on the
// console, nothing loaded from elsewhere, every chart has data and its table, nothing is wider than
// a window of 400 pixels or than paper, axe-core finds nothing, in light and in dark.
//
//     npm install playwright-core axe-core
//     node check.mjs report.html [DIRECTORY_FOR_SCREENSHOTS]

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.cwd()}/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const [file, screenshots] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox"],
});
const problems = [];
for (const colorScheme of ["light", "dark"]) {
  for (const width of [1280, 400]) {
    const where = `${colorScheme}, ${width} pixels`;
    const page = await browser.newPage({ colorScheme, viewport: { width, height: 900 } });
    page.on("console", (message) => {
      if (message.type() === "error") problems.push(`${where}: console: ${message.text()}`);
    });
    page.on("pageerror", (error) => problems.push(`${where}: ${error}`));
    page.on("request", (request) => {
      if (!/^(file|data):/.test(request.url())) problems.push(`${where}: loads ${request.url()}`);
    });
    await page.goto(pathToFileURL(resolve(file)).href);
    const found = await page.evaluate(() => {
      const charts = [...document.querySelectorAll("figure.chart")];
      const empty = charts.filter(
        (chart) => !chart.querySelector("svg .dot, svg .line, svg .rest") || !chart.querySelector("table tbody tr"),
      );
      return {
        charts: charts.length,
        empty: empty.map((chart) => chart.querySelector("figcaption").textContent),
        width: document.documentElement.scrollWidth,
        text: document.body.innerText,
      };
    });
    if (found.charts === 0) problems.push(`${where}: there is no chart`);
    for (const caption of found.empty) problems.push(`${where}: "${caption}" is empty`);
    if (found.width > width) problems.push(`${where}: the page is ${found.width} pixels wide`);
    if (/NaN|undefined|Infinity/.test(found.text)) problems.push(`${where}: a figure is no number`);
    // What can be reached by keyboard is what scrolls, opens or leads somewhere.
    await page.keyboard.press("Tab");
    if (await page.evaluate(() => document.activeElement === document.body)) {
      problems.push(`${where}: the keyboard reaches nothing`);
    }
    await page.evaluate(() => document.querySelectorAll("details").forEach((it) => (it.open = true)));
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => axe.run());
    for (const { id, help, nodes } of violations) {
      problems.push(`${where}: axe: ${id}: ${help}: ${nodes[0].html.slice(0, 200)}`);
    }
    await page.evaluate(() => document.querySelectorAll("details").forEach((it) => (it.open = false)));
    if (screenshots) {
      await page.screenshot({ path: `${screenshots}/${colorScheme}-${width}.png`, fullPage: true });
    }
    if (width === 1280) {
      // Between the margins of A4, a pixel of CSS being 1/96 inch.
      await page.setViewportSize({ width: 700, height: 900 });
      await page.emulateMedia({ media: "print", colorScheme });
      const wide = await page.evaluate(() =>
        [...document.querySelectorAll("table, svg")]
          .filter((it) => it.getBoundingClientRect().right > innerWidth + 1)
          .map((it) => it.caption?.textContent ?? it.getAttribute("aria-label")),
      );
      for (const name of wide) problems.push(`print, ${colorScheme}: "${name}" is wider than the paper`);
    }
    if (width === 1280) console.log(`${where}: ${found.charts} charts`);
    await page.close();
  }
}
await browser.close();
problems.forEach((problem) => console.error(problem));
process.exit(problems.length ? 1 : 0);
