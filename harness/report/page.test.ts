// SPDX-License-Identifier: Apache-2.0

/** The page of a run in a real Chromium (Debian's package), as its readers use it. */
import { ROOT } from "../base/root.ts";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { type Browser, type BrowserContext, chromium, type Page } from "playwright-core";
import { eventually } from "../base/waiting.ts";
import { PLACES } from "../base/settings.ts";
import { largeExample, smallExample } from "./example.ts";
import { CALLS_CARRIED, html } from "./formats/html.ts";
import { count, isRed, type Results, VERDICTS } from "./model.ts";
import { readResults } from "./read.ts";

interface AxeResults {
  violations: { id: string; nodes: { target: unknown[] }[] }[];
}

const CHROMIUM = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find((path) =>
  existsSync(path),
);
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const WAIT_MS = 10_000;
/** In which part of the page the focus is. */
const AT = `document.activeElement.closest("#filters, #failures, #tools, #chart, #scenarios")?.id ?? document.activeElement.className`;

const nameOfFocused = (page: Page) =>
  page.evaluate<string>("document.activeElement.getAttribute('aria-label')");

test("a page stays under 2 MB when everything failed at length, and says what it left out", () => {
  const results = largeExample(300, CALLS_CARRIED + 3_000);
  const lines = Array<string>(60).fill("a line of a log that says what a program does ".repeat(3));
  for (const scenario of results.scenarios)
    Object.assign(scenario, {
      verdict: "fail",
      reason: "it broke ".repeat(2_000),
      logs: { gateway: lines, driver: lines },
    });
  const page = html(results);
  expect(Buffer.byteLength(page)).toBeLessThan(2_000_000);
  expect(page).toMatch(/3,000 calls of 23,000 are not in this page/);
  expect(page).toMatch(/the last \d+ of 60 lines/);
});

test("what the results hold cannot become markup or script", () => {
  const results = smallExample();
  const nasty = `</script><script>globalThis.pwned = 1</script><img src=x onerror="pwned=1">`;
  results.scenarios[7]!.title = `XF-01 ${nasty}`;
  results.scenarios[7]!.source = `javascript:${nasty}`;
  results.marks[0]!.what = nasty;
  const page = html(results);
  expect(page).not.toContain("<img");
  expect(page.match(/<script/g)).toHaveLength(2);
  expect(page).not.toContain('href="javascript');
});

test("a failure has what the driver told of its sandboxes, when it did, and of no others", () => {
  const results = smallExample();
  const [scenario] = results.scenarios.filter(({ id }) => id === "XF-09");
  const watch = results.calls.find(({ method }) => method === "WatchSandboxes")!;
  const at = scenario!.at + 250;
  watch.events!.push({ at, sandbox: scenario!.sandboxes[0]!, event: { platform_event: { reason: "MINE" } } });
  watch.events!.push({ at, sandbox: "another", event: { platform_event: { reason: "OTHERS" } } });
  const page = html(results);
  const card = page.slice(page.indexOf('id="XF-09"')).split("</tbody>")[0]!;
  const row = card.split("<tr>").find((each) => each.includes("MINE"));
  expect(row).toStartWith('<td>+0.25 s</td><td>WatchSandboxes</td><td class="s-open">event</td>');
  expect(page.includes("OTHERS")).toBe(false);
});

test("the card of a scenario that ran more than once says how often it failed", () => {
  const page = html(smallExample());
  const card = page.slice(page.indexOf('id="XF-09"')).split("</details>", 1)[0]!;
  expect(card).toContain(" · failed 3 of 20 times</span>");
});

test("of older results, whose streams have responses without times, those are shown", () => {
  const results = smallExample();
  const watch = results.calls.find(({ method }) => method === "WatchSandboxes")!;
  delete watch.events;
  watch.responses = [{ deleted: { sandbox_id: "OLDER" } }];
  expect(html(results).includes("OLDER")).toBe(true);
});

test("what is known to fail has its logs, and the engine's card says whose image it names", () => {
  const results = smallExample();
  const known = results.scenarios.find(({ verdict }) => verdict === "known")!;
  known.logs.gateway = ["a line of the gateway"];
  known.engineCalls = ["+0.10 s  GET info → 200"];
  results.stack.engine.image = { reference: "localhost/sandbox:1", digest: "" };
  const page = html(results);
  const row = page.slice(page.indexOf(`id="${known.id}"`)).split("</tr>\n<tr ")[0]!;
  expect(row).toContain("a line of the gateway");
  expect(row).toContain("GET info → 200");
  expect(page).toContain(">sandboxes: localhost/sandbox:1</small>");
});

test("the page fetches nothing", () => {
  const page = html(smallExample());
  expect(page).toContain("default-src 'none'");
  expect(page).not.toMatch(/(?:src|srcset)=|<link|@import|url\(/);
});

describe.skipIf(!CHROMIUM)(
  `in Chromium${CHROMIUM ? "" : " (skipped: there is none; apt-get install chromium)"}`,
  () => {
    let browser: Browser;
    let folder: string;
    let context: BrowserContext | undefined;
    const complaints: string[] = [];

    beforeAll(async () => {
      folder = mkdtempSync(join(tmpdir(), "page-"));
      browser = await chromium.launch({
        executablePath: CHROMIUM!,
        args: ["--no-sandbox", "--disable-dev-shm-usage"],
      });
    }, 30_000);
    afterAll(async () => {
      await browser?.close();
      rmSync(folder, { recursive: true, force: true });
    });
    afterEach(async () => {
      await context?.close();
      expect(complaints.splice(0)).toEqual([]);
    });

    /** Opens the page of these results; whatever the console says fails the test. */
    async function open(
      results: Results,
      { scheme = "light", hash = "" }: { scheme?: "light" | "dark"; hash?: string } = {},
    ): Promise<Page> {
      const file = join(folder, "report.html");
      writeFileSync(file, html(results));
      context = await browser.newContext({
        colorScheme: scheme,
        viewport: { width: 1280, height: 900 },
        reducedMotion: "reduce",
      });
      context.setDefaultTimeout(WAIT_MS);
      const page = await context.newPage();
      page.on("console", (message) => complaints.push(message.text()));
      page.on("pageerror", (error) => complaints.push(error.message));
      page.on(
        "request",
        (request) => request.url().startsWith("file:") || complaints.push(`fetched ${request.url()}`),
      );
      await page.goto(pathToFileURL(file).href + hash);
      await page.waitForSelector("#chart svg");
      return page;
    }

    const visibleCards = (page: Page) => page.locator(".card:visible .id").allTextContents();

    test("says first what it came to, with the stack, and unfolds the first failure", async () => {
      const page = await open(smallExample());
      expect(await page.locator("h1").textContent()).toBe("11 of 24 scenarios failed, 1 cut off");
      expect(await page.locator(".stack strong").allTextContents()).toEqual([
        "openshell-gateway 0.0.112",
        "openshell-driver-podman 0.0.112",
        "podman 5.4.2 (rootful)",
        "openshell-sandbox",
      ]);
      expect(await page.locator(".stack small").allTextContents()).toEqual([
        "ghcr.io/nvidia/openshell/supervisor:0.0.112 sha256:9f86d081884c",
      ]);
      expect(await page.locator(".card").count()).toBe(12);
      expect(await page.locator(".card[open] .evidence").textContent()).toContain(
        "StopSandbox → INTERNAL after 132 ms",
      );
    });

    test("a failure unfolds to its explanation", async () => {
      const page = await open(smallExample());
      const card = page.locator("#XF-03");
      expect(await card.locator(".evidence").isVisible()).toBe(false);
      await card.locator("summary").first().click();
      expect(await card.locator(".evidence").textContent()).toContain("panicked");
      expect(await card.locator("table.calls tbody tr").count()).toBe(2);
    });

    test("a link to a scenario unfolds its failure, or leads to its row", async () => {
      const failed = await open(smallExample(), { hash: "#XF-07" });
      expect(await failed.locator("#XF-07").getAttribute("open")).not.toBeNull();
      await failed.locator('tr[data-scenario="XF-02"] a').click();
      await failed.waitForSelector("#XF-02[open]");
      await context?.close();
      const passed = await open(smallExample(), { hash: "#LC-02" });
      expect(await passed.locator("tr:target .id").textContent()).toBe("LC-02");
    });

    test("every call, phase, process, scenario, fault and restart is a mark of the timeline", async () => {
      const results = smallExample();
      const page = await open(results);
      const marks = (kind: string) => page.locator(`#chart .m${kind}`).count();
      expect(await marks(".call")).toBe(results.calls.length);
      expect(await marks(".scn")).toBe(results.scenarios.length);
      expect(await marks(".process")).toBe(results.processes.length);
      expect(await marks(".flag")).toBe(results.marks.length);
      expect(await marks(".band")).toBe(results.phases.filter(({ phase }) => phase !== "GONE").length);
      expect(await page.locator("#chart .arrow").count()).toBe(
        results.calls.filter(({ method }) => method !== "WatchSandboxes").length,
      );
      expect(await page.locator("#chart text.lane").allTextContents()).toEqual([
        "test",
        "gateway",
        "driver",
        "engine",
        "supervisor",
      ]);
    });

    test("of 20,000 calls it draws what tells most, says so, and draws the others where one zooms in", async () => {
      const results = largeExample();
      const page = await open(results);
      const refused = results.calls.filter(({ status }) => status !== "OK").length;
      expect(await page.locator("#chart .call").count()).toBe(1500);
      expect(await page.locator("#chart .call.bad").count()).toBe(refused);
      expect(await page.locator("#drawn").textContent()).toStartWith("1,500 of 20,000 calls are drawn");
      for (let times = 0; times < 5; times++) await page.getByRole("button", { name: "Zoom in" }).click();
      expect(await page.locator("#drawn").textContent()).toMatch(/^All \d+ calls are drawn/);
    }, 30_000);

    test("filters by words, sandbox, method and verdict leave what matches, everywhere", async () => {
      const page = await open(smallExample());
      const shown = () => page.locator("#shown").textContent();
      await page.getByRole("searchbox", { name: "Scenario" }).fill("token");
      expect(await visibleCards(page)).toEqual(["XF-08"]);
      expect(await shown()).toBe("1 scenario, 4 calls");
      await page.getByRole("button", { name: "Clear" }).click();
      await page.locator("[name=sandbox]").selectOption({ label: "sandbox-20" });
      expect(await visibleCards(page)).toEqual(["XF-01"]);
      expect(await page.locator("#chart .call").count()).toBe(4);
      await page.locator("[name=method]").selectOption("StopSandbox");
      expect(await shown()).toBe("1 scenario, 1 call");
      await page.getByRole("button", { name: "Clear" }).click();
      await page.getByRole("checkbox", { name: "FAIL" }).uncheck();
      expect(await visibleCards(page)).toEqual(["XF-10", "DI-01"]);
      expect(await page.locator("table.scenarios tbody tr:visible").count()).toBe(14);
    });

    test("what no scenario made belongs to those that ran beside it, and the rest is not in the way", async () => {
      const results = smallExample();
      const own = results.scenarios.find(({ id }) => id === "LC-02")!;
      const request = { sandbox: { id: "unowned", name: "half-made" } };
      const { stack, at } = own;
      const made = results.calls.find(({ method }) => method === "CreateSandbox")!;
      results.calls.push({ ...made, seq: 999, stack, at: at + 1, ms: 3, sandbox: "unowned", request });
      const page = await open(results);
      const shown = () => page.locator("#shown").textContent();
      const sandboxes = page.locator("[name=sandbox]");
      const names = await sandboxes.locator("option").allTextContents();
      expect(names[0]).toBe(`all ${names.length - 1}`);
      expect(await page.locator(".facts").textContent()).toContain(`${names.length - 1} sandboxes`);
      await sandboxes.selectOption({ label: "half-made" });
      expect(await shown()).toBe("1 scenario, 1 call");
      await page.getByRole("button", { name: "Clear" }).click();
      await page.locator("[name=method]").selectOption("WatchSandboxes");
      expect(await shown()).toMatch(/^[1-9]\d scenarios, 1 call$/);
      await page.getByRole("button", { name: "Clear" }).click();
      expect(await page.locator("#chart .flag").count()).toBe(results.marks.length);
      await page.getByRole("searchbox", { name: "Scenario" }).fill("LC-02");
      const near = (from: number, to = Infinity) => from <= at + own.ms && to >= at;
      const marks = results.marks.filter((mark) => mark.stack === stack && near(mark.at, mark.at));
      const processes = results.processes.filter(
        (each) => [0, stack].includes(each.stack) && near(each.at, each.at + (each.ms ?? Infinity)),
      );
      expect(await page.locator("#chart .flag").count()).toBe(marks.length);
      expect(await page.locator("#chart .process").count()).toBe(processes.length);
      expect(processes.length).toBeLessThan(results.processes.length);
    });

    test("a sandbox is stopping from the call on, and no longer there when its gateway is not", async () => {
      const results = smallExample();
      const gateway = results.processes.find(({ name, stack }) => name === "gateway" && stack === 2)!;
      gateway.ms = 2_000;
      const at = gateway.at + 500;
      const [stack, sandbox] = [2, "stuck"];
      const phase = (what: string, when: number) =>
        results.phases.push({ stack, sandbox, name: "stuck", phase: what, at: when });
      phase("READY", at);
      phase("STOPPED", at + 700);
      const made = results.calls.find(({ method }) => method === "CreateSandbox")!;
      results.calls.push({ ...made, method: "StopSandbox", seq: 999, stack, sandbox, at: at + 100, ms: 600 });
      const page = await open(results);
      const bands = await page
        .locator('#chart .band[aria-label^="sandbox stuck:"]')
        .evaluateAll((all) => all.map((each) => each.getAttribute("aria-label")!));
      expect(bands.map((band) => /: (\w+), .* for (.*?)(?: ·|,|$)/.exec(band)?.slice(1))).toEqual([
        ["ready", "100 ms"],
        ["stopping", "600 ms"],
        ["stopped", "800 ms"],
      ]);
    });

    test("times can be found in the logs, and those of the axis be read to the end", async () => {
      const results = smallExample();
      results.run.ms = 31_600;
      const page = await open(results);
      expect(await page.locator(".over").textContent()).toContain("2026-11-24 12:00:00 UTC");
      const call = results.calls.find(({ status }) => status === "INTERNAL")!;
      const clock = new Date(Date.parse(results.run.startedAt) + call.at).toISOString().slice(11, 23);
      await page.locator("#chart .call.bad").first().hover();
      expect(await page.locator(".tip").textContent()).toContain(`(${clock} UTC)`);
      const axis = page.locator("#chart svg > text[y='13']");
      expect(await axis.first().textContent()).toBe("0 s");
      const chart = (await page.locator("#chart").boundingBox())!;
      for (let times = 0; times < 4; times++) {
        for (const text of await axis.all()) {
          expect(await text.textContent()).toMatch(/^[\d.]+ s$/);
          const box = (await text.boundingBox())!;
          expect(box.x + box.width).toBeLessThanOrEqual(chart.x + chart.width);
        }
        await page.getByRole("button", { name: "Zoom in" }).click();
      }
    });

    test("a mark tells under the pointer, and under the keyboard, what it is", async () => {
      const page = await open(smallExample());
      await page.locator("#chart .call.bad").first().hover();
      expect(await page.locator(".tip").textContent()).toContain("StopSandbox → INTERNAL after 132 ms");
      await page.mouse.move(0, 0);
      await page.locator('#chart [tabindex="0"]').focus();
      const name = () => nameOfFocused(page);
      expect(await name()).toStartWith("fault StopSandbox: delay 300ms");
      await page.keyboard.press("ArrowRight");
      expect(await name()).toStartWith("kill driver");
      await page.keyboard.press("ArrowDown");
      expect(await name()).toMatch(/^(?:cut|older|fail|pass|test)/);
      expect(await page.locator(".tip").isVisible()).toBe(true);
    });

    test("the keyboard reaches every mark, and from a mark its scenario", async () => {
      const page = await open(smallExample());
      await page.locator('#chart [tabindex="0"]').focus();
      const reached = new Set<string>();
      const here = async () => (await page.evaluate<string>("document.activeElement.dataset.i")) ?? "";
      for (let lane = 0; lane <= 5; lane++) {
        await page.keyboard.press("Home");
        for (let last = ""; last !== (await here()); await page.keyboard.press("ArrowRight"))
          reached.add((last = await here()));
        await page.keyboard.press("ArrowDown");
      }
      expect(reached.size).toBe(await page.locator("#chart .m").count());
      await page.locator("#chart .call.bad").first().focus();
      await page.keyboard.press("Enter");
      await page.waitForURL("**/report.html#XF-01");
    }, 30_000);

    test("Tab goes through the page from top to bottom, and the timeline is one stop", async () => {
      const page = await open(smallExample(), { hash: "" });
      const order: string[] = [];
      for (let stop = 0; stop < 60; stop++) {
        await page.keyboard.press("Tab");
        const at = await page.evaluate<string>(AT);
        if (order.at(-1) !== at) order.push(at);
      }
      expect(order).toEqual(["skip-link", "filters", "failures", "tools", "chart", "scenarios"]);
      await page.locator('#chart [tabindex="0"]').focus();
      await page.keyboard.press("Tab");
      expect(await page.evaluate("document.activeElement.closest('section')?.id")).toBe("scenarios");
    });

    test("zoom by keyboard keeps the mark in hand, and a drag shows the span", async () => {
      const page = await open(smallExample());
      await page.locator("#chart .call.bad").first().focus();
      await page.keyboard.press("+");
      await page.keyboard.press("+");
      expect(await nameOfFocused(page)).toStartWith("StopSandbox");
      expect(await page.locator("#range").textContent()).not.toStartWith("0 ms to 16.50 s");
      await page.keyboard.press("0");
      expect(await page.locator("#range").textContent()).toBe("0 ms to 16.50 s of 16.50 s");
      await page.setViewportSize({ width: 1000, height: 900 });
      const width = () => page.evaluate<number>("document.querySelector('#chart svg').viewBox.baseVal.width");
      // Not `waitForFunction`, which evaluates a string in the page where the page's own policy may forbid it.
      await eventually(async () => expect(await width()).toBeLessThan(1000), { what: "a narrower chart" });
      expect(await nameOfFocused(page)).toStartWith("StopSandbox");
      await page.setViewportSize({ width: 1280, height: 900 });
      const box = (await page.locator("#chart").boundingBox())!;
      await page.mouse.move(box.x + 300, box.y + 40);
      await page.mouse.down();
      await page.mouse.move(box.x + 500, box.y + 60);
      await page.mouse.up();
      expect(await page.locator("#range").textContent()).toMatch(/^[23]\.\d+ s to 6\.\d+ s/);
    });

    test("a failure is shown in the timeline", async () => {
      const page = await open(smallExample());
      await page.locator("#XF-01 .show").click();
      expect(await page.locator("#range").textContent()).toMatch(/^3\.\d+ s to 4\.\d+ s/);
      expect(await nameOfFocused(page)).toStartWith("fail: XF-01");
    });

    test.each(["light", "dark"] as const)(
      "axe finds nothing to complain about in %s",
      async (scheme) => {
        const results = smallExample();
        const lines = Array<string>(60).fill(
          "a line of a log that is long enough to be folded somewhere ".repeat(2),
        );
        for (const { verdict, logs } of results.scenarios)
          if (isRed(verdict)) Object.assign(logs, { gateway: lines, driver: lines });
        const page = await open(results, { scheme });
        await page.evaluate(
          "for (const details of document.querySelectorAll('details')) details.open = true",
        );
        await page.evaluate(AXE);
        const { violations } = await page.evaluate<AxeResults>("axe.run()");
        expect(
          violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ target }) => target).join(", ")}`),
        ).toEqual([]);
      },
      60_000,
    );

    test.each([400, 1280])("nothing is wider than a window of %i px", async (width) => {
      const results = smallExample();
      const known = results.scenarios.find(({ verdict }) => verdict === "known")!;
      const { at, ms, stack, sandboxes } = results.scenarios.find(({ id }) => id === "XF-01")!;
      const reason = `it is known, https://github.com/NVIDIA/OpenShell/issues/${"2352".repeat(20)}`;
      Object.assign(known, { reason, at, ms, stack, sandboxes });
      const wrong = results.scenarios.find(({ verdict }) => verdict === "error")!;
      wrong.reason = `OPENSHELL_E2E_RUN_DIR: too long: /${"folder".repeat(40)}`;
      const page = await open(results);
      await page.setViewportSize({ width, height: 900 });
      await page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true");
      expect(await page.evaluate("document.documentElement.scrollWidth - innerWidth")).toBe(0);
      // What is wider than a card is cut off there.
      const widths = await page
        .locator(".card, .card .line")
        .evaluateAll((all) => all.map((each) => each.scrollWidth - each.clientWidth));
      expect(Math.max(...widths)).toBe(0);
      expect(await page.locator(`#${known.id} small a`).getAttribute("href")).toStartWith(
        "https://github.com/",
      );
    });

    describe("of a real run", () => {
      let results: Results;
      beforeAll(async () => {
        const reports = join(folder, "reports");
        const child = Bun.spawn(
          // One has the long name of a variable in its title.
          [process.execPath, "harness.ts", "test", "external-podman", "-t", "CF-14|SM-02|SE-10"],
          {
            cwd: ROOT,
            env: {
              PATH: process.env.PATH,
              HOME: process.env.HOME,
              OPENSHELL_E2E_FAKE: PLACES.join(","),
              OPENSHELL_E2E_REPORTS: reports,
            },
            stdout: "ignore",
            stderr: "pipe",
          },
        );
        const errors = await child.stderr.text();
        expect(await child.exited, errors).toBe(0);
        results = readResults(reports);
      }, 60_000);

      test.each([320, 400, 1280])("nothing is wider than a window of %i px", async (width) => {
        expect(results.scenarios.map(({ title }) => title).join()).toContain(
          "OPENSHELL_COMPUTE_DRIVER_SOCKET",
        );
        expect(await overhang(await open(results), width)).toBe(0);
      });

      test.each([320, 400, 1280])(
        "nor is it when all names, paths and texts are long, without a place to break, at %i px",
        async (width) => {
          const long = stretched(results) as Results;
          const [passed] = long.scenarios.filter(({ verdict }) => verdict === "pass");
          for (const verdict of VERDICTS) {
            const id = `${verdict}${"i".repeat(200)}`;
            const text = "t".repeat(900);
            const findings = { source: `https://x/${text}`, harm: text, expected: text, seen: text };
            const lines = { logs: { gateway: [text], driver: [text] }, engine: [text], engineCalls: [text] };
            const times = { times: { run: 2_000_000, failed: 1_000_000 }, ms: 1e10 };
            long.scenarios.push({ ...passed!, id, verdict, reason: text, ...findings, ...lines, ...times });
          }
          long.leftovers = ["l".repeat(400)];
          expect(await overhang(await open(long), width)).toBe(0);
        },
      );

      /** How much wider than its window the page is with all of it unfolded, in pixels. */
      async function overhang(page: Page, width: number): Promise<number> {
        await page.setViewportSize({ width, height: 900 });
        await page.evaluate(
          "for (const details of document.querySelectorAll('details')) details.open = true",
        );
        return page.evaluate<number>("document.documentElement.scrollWidth - innerWidth");
      }

      /** The same with long texts, but for those that have a meaning to a program. */
      function stretched(value: unknown, field = ""): unknown {
        const isFixed = ["verdict", "startedAt", "phase", "status", "sandbox", "sandboxes"].includes(field);
        if (typeof value === "string") return isFixed || value === "" ? value : value + "x".repeat(300);
        if (Array.isArray(value)) return value.map((item) => stretched(item, field));
        if (typeof value !== "object" || value === null) return value;
        return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, stretched(each, name)]));
      }
    });

    test("printed, the timeline comes first, failures are unfolded, and logs are their last lines", async () => {
      const results = smallExample();
      const lines = Array.from(
        { length: 60 },
        (_, line) => `line ${line} of a log that says what a program does`,
      );
      for (const { verdict, logs } of results.scenarios)
        if (isRed(verdict)) Object.assign(logs, { gateway: lines, driver: lines });
      const page = await open(results);
      const log = page.locator("#XF-01 .lines pre").filter({ hasText: "line 59" }).first();
      await page.evaluate("dispatchEvent(new Event('beforeprint'))");
      await page.emulateMedia({ media: "print" });
      expect(await page.locator(".card:not([open])").count()).toBe(0);
      expect(await page.locator("#filters").isVisible()).toBe(false);
      expect(await page.locator(".calls details[open]").count()).toBe(0);
      expect((await log.textContent())!.split("\n")).toEqual(lines.slice(-15));
      const order = await page.locator("main > section").evaluateAll((all) => all.map(({ id }) => id));
      expect(order).toEqual(["timeline", "failures", "scenarios"]);
      const pages = (await page.pdf()).toString("latin1").match(/\/Type\s*\/Page\b(?!s)/g);
      // A page for each of the twelve failures, and some for the rest.
      expect(pages?.length).toBeGreaterThan(3);
      expect(pages?.length).toBeLessThanOrEqual(17);
      await page.evaluate("dispatchEvent(new Event('afterprint'))");
      expect(await page.locator(".card:not([open])").count()).toBe(11);
      expect((await log.textContent())!.split("\n")).toHaveLength(60);
    });

    test("a run that went well says so, and one that was cut off does too", async () => {
      const well = smallExample();
      well.scenarios = well.scenarios.filter(({ verdict }) => !isRed(verdict));
      well.counts = count(well.scenarios);
      const page = await open(well);
      expect(await page.locator("h1").textContent()).toBe("9 scenarios passed, none failed");
      await context?.close();
      well.run.cutOff = true;
      Object.assign(well, {
        counts: count([]),
        scenarios: [],
        calls: [],
        phases: [],
        processes: [],
        marks: [],
      });
      const empty = await open(well);
      expect(await empty.locator("h1").textContent()).toBe("The run was cut off");
      await context?.close();
      const killed = smallExample();
      killed.scenarios = killed.scenarios.filter(({ verdict }) => verdict === "cut" || !isRed(verdict));
      killed.counts = count(killed.scenarios);
      const half = await open(killed);
      expect(await half.locator("h1").textContent()).toBe("The run was cut off: 9 passed, 1 cut off");
    });
  },
);
