// SPDX-License-Identifier: Apache-2.0

/** `report` and `diff` as a shell sees them: what they write, where, and how they end. */
import { ROOT } from "../base/root.ts";
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { largeExample, smallExample } from "../report/example.ts";
import type { Results } from "../report/model.ts";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

const HARNESS = join(ROOT, "harness.ts");
let folder: string;
const path = (name: string) => join(folder, name);

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "report-"));
  const better = smallExample();
  for (const scenario of better.scenarios) Object.assign(scenario, { verdict: "pass", reason: "" });
  writeFileSync(path("results.json"), JSON.stringify(smallExample()));
  writeFileSync(path("better.json"), JSON.stringify(better));
  writeFileSync(path("large.json"), JSON.stringify(largeExample()));
  writeFileSync(path("half.json"), JSON.stringify(smallExample()).slice(0, 5000));
  writeFileSync(path("newer.json"), JSON.stringify({ ...smallExample(), schema: 2 }));
  const wrong = smallExample();
  Object.assign(wrong.calls[0]!, { events: [1] });
  writeFileSync(path("wrong-events.json"), JSON.stringify(wrong));
  writeFileSync(path("other.json"), JSON.stringify({ ...smallExample(), calls: [1] }));
});
afterAll(() => rmSync(folder, { recursive: true }));

/**
 * Prints what a command takes. A process of its own, since Linux counts what its parent takes as a child's own: here that
 * would be all that the tests before have left.
 */
const MEASURE = `
  const { exitCode, resourceUsage } = Bun.spawnSync(process.argv.slice(1), { stdout: "ignore", stderr: "inherit" });
  if (exitCode !== 0) process.exit(exitCode);
  const { cpuTime, maxRSS } = resourceUsage;
  console.log(JSON.stringify({ cpuMs: Number(cpuTime.total) / 1000, megabytes: maxRSS / 2 ** 20 }));`;

/** Runs a verb to its end. */
async function harness(args: string[], env: Record<string, string> = {}) {
  const child = Bun.spawn([process.execPath, HARNESS, ...args], {
    cwd: folder,
    env: { PATH: process.env.PATH, HOME: folder, ...env },
    stdout: "pipe",
    stderr: "pipe",
    timeout: 30_000,
  });
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { out, err, code };
}

describe("report", () => {
  test.each([
    ["junit", "<?xml"],
    ["ctrf", "{"],
    ["markdown", "## ❌"],
    ["matrix", "| driver | engine |"],
    ["github", "::error file="],
  ])("--format %s goes to standard output", async (format, begin) => {
    const { out, code } = await harness(["report", folder, "--format", format]);
    expect(out).toStartWith(begin);
    expect(code).toBe(0);
  });

  test("a page goes beside the results", async () => {
    const { out, err, code } = await harness(["report", folder, "--format", "html"]);
    expect({ out, code }).toEqual({ out: "", code: 0 });
    expect(err).toContain("report.html");
    expect(readFileSync(path("report.html"), "utf8")).toStartWith("<!doctype html>");
  });

  test("all of a long report gets through a pipe", async () => {
    const { out } = await harness(["report", path("large.json"), "--format", "html", "--out", "-"]);
    expect(out.trimEnd()).toEndWith("</html>");
  });

  test("--out names the file, whose folder is made", async () => {
    await harness([
      "report",
      path("results.json"),
      "--format",
      "junit",
      "--out",
      path("made/here/junit.xml"),
    ]);
    expect(existsSync(path("made/here/junit.xml"))).toBe(true);
  });

  test("in a workflow the summary is added to the step's, and annotations to its log", async () => {
    writeFileSync(path("summary.md"), "before\n");
    const { out } = await harness(["report", folder, "--format", "github"], {
      GITHUB_STEP_SUMMARY: path("summary.md"),
    });
    expect(readFileSync(path("summary.md"), "utf8")).toStartWith("before\n## ❌");
    expect(
      out
        .split("\n")
        .filter(Boolean)
        .every((line) => line.startsWith("::")),
    ).toBe(true);
  });

  test.each([
    [
      "no format",
      ["report", "."],
      "--format: one of html, junit, ctrf, markdown, github, matrix was expected",
    ],
    ["an unknown format", ["report", ".", "--format", "pdf"], "was expected: pdf"],
    [
      "a folder without results",
      ["report", "nowhere", "--format", "junit"],
      "nowhere: no results can be read there (ENOENT)",
    ],
    [
      "half a file",
      ["report", "half.json", "--format", "junit"],
      "half.json: not the results of a run: it is not JSON",
    ],
    [
      "a newer format",
      ["report", "newer.json", "--format", "junit"],
      "of format 2, and this harness reads format 1",
    ],
    [
      "something else",
      ["report", "other.json", "--format", "junit"],
      "other.json: not the results of a run: `/calls/0` must be object",
    ],
    [
      "a stream with wrong events",
      ["report", "wrong-events.json", "--format", "junit"],
      "`/calls/0/events/0` must be object",
    ],
    ["several runs for one report", ["report", ".", ".", "--format", "html"], "matrix takes several"],
    [
      "a place where nothing can be written",
      ["report", ".", "--format", "junit", "--out", "results.json/x"],
      "--out results.json/x: cannot be written",
    ],
    ["one run to compare", ["diff", "."], "two runs were expected, and 1 given"],
  ])("%s is one clear line and exit code 2", async (_, args, message) => {
    const { out, err, code } = await harness(args);
    expect(err).toContain(message);
    expect(err.trimEnd().split("\n")).toHaveLength(1);
    expect({ out, code }).toEqual({ out: "", code: 2 });
  });

  test("the page of 300 scenarios and 20,000 calls takes at most 1 s, 200 MB, and 2 MB on disk", async () => {
    const report = ["report", path("large.json"), "--format", "html", "--out", path("large.html")];
    const measurer = Bun.spawn([process.execPath, "-e", MEASURE, process.execPath, HARNESS, ...report], {
      stdout: "pipe",
      timeout: 30_000,
    });
    const { cpuMs, megabytes } = (await measurer.stdout.json()) as { cpuMs: number; megabytes: number };
    // Its own time: how busy the machine is beside it is not what is measured.
    expect(cpuMs).toBeLessThan(1_000);
    expect(megabytes).toBeLessThan(200);
    expect(Bun.file(path("large.html")).size).toBeLessThan(2_000_000);
  });
});

describe("what is no run's results", () => {
  const changed = (change: (results: Results) => unknown) => {
    const results = smallExample();
    change(results);
    return JSON.stringify(results);
  };
  const first = (change: object) => changed(({ scenarios }) => Object.assign(scenarios[7]!, change));
  const small = JSON.stringify(smallExample());
  const nested = (levels: number) =>
    small.replace('"request":', `"request":${"[".repeat(levels)}${"]".repeat(levels)},"was":`);

  test.each([
    ["logs that are none", first({ logs: { gateway: null } }), "`/scenarios/7/logs`"],
    [
      "lines that are numbers",
      first({ logs: { gateway: [1], driver: [] } }),
      "`/scenarios/7/logs/gateway/0`",
    ],
    ["sandboxes that are no list", first({ sandboxes: {} }), "`/scenarios/7/sandboxes` must be array"],
    [
      "a verdict that there is not",
      first({ verdict: "ok" }),
      "must be equal to one of the allowed values: pass",
    ],
    [
      "an image without a name",
      changed(({ stack }) => Object.assign(stack.engine, { image: { reference: {}, digest: 7 } })),
      "`/stack/engine/image/reference` must be string",
    ],
    ["a duration without end", small.replace(/"ms":\d+/, '"ms":1e999'), "`/run/ms` must be number"],
    ["a later format", changed((results) => Object.assign(results, { schema: 99 })), "it is of format 99"],
    [
      "a format that is a list",
      changed((results) => Object.assign(results, { schema: [1] })),
      "of format [1]",
    ],
    ["200,000 levels", nested(200_000), "nested deeper than 1000 levels"],
    ["the half of 200,000 levels", "[".repeat(200_000), "nested deeper than 1000 levels"],
    ["nothing", "", "it is not JSON"],
    ["null", "null", "it has no `schema`"],
  ])("%s: every verb says so in one line, with exit code 2", async (_, text, problem) => {
    writeFileSync(path("bad.json"), text);
    await refused(path("bad.json"), problem);
  });

  test("a file larger than any run's is not read", async () => {
    writeFileSync(path("bad.json"), small);
    truncateSync(path("bad.json"), 400_000_000);
    await refused(path("bad.json"), "it has 400 MB, and 67 are the most");
  });

  test("a pipe or a device is not opened for ever", async () => {
    Bun.spawnSync(["mkfifo", path("pipe.json")]);
    await refused(path("pipe.json"), "it is not a file");
    await refused("/dev/zero", "it is not a file");
    mkdirSync(path("folder/results.json"), { recursive: true });
    await refused(path("folder"), "it is not a file");
  });

  test("nesting that is deep, fields of a later version, and names of other files are no harm", async () => {
    const later = { ...(JSON.parse(nested(900)) as Results), added: { since: 2 } };
    Object.assign(later.scenarios[7]!, { file: "../../../../etc/passwd", line: 1, added: true });
    later.scenarios[7]!.logs.gateway = ["../../../../etc/passwd"];
    writeFileSync(path("later.json"), JSON.stringify(later));
    for (const format of ["junit", "ctrf", "markdown", "matrix", "github", "html"]) {
      const { out, code } = await harness(["report", "later.json", "--format", format, "--out", "-"]);
      expect({ format, code }).toEqual({ format, code: 0 });
      expect(out).not.toContain("root:");
    }
    expect((await harness(["diff", "later.json", "results.json"])).err).toBe("");
  });

  /** Says of each verb that it refuses that file. */
  async function refused(file: string, problem: string): Promise<void> {
    const verbs = [
      ["report", file, "--format", "junit"],
      ["report", path("results.json"), file, "--format", "matrix"],
      ["diff", path("results.json"), file],
    ];
    for (const { out, err, code } of await Promise.all(verbs.map((verb) => harness(verb)))) {
      expect(err).toMatch(/^openshell-e2e: [^\n]*\n$/);
      expect(err).toContain(problem);
      expect({ out, code }).toEqual({ out: "", code: 2 });
    }
  }
});

describe("diff", () => {
  test("what got worse is exit code 1, what did not is 0", async () => {
    const worse = await harness(["diff", path("better.json"), folder]);
    expect(worse.out).toContain("pass    → FAIL    XF-01");
    expect(worse.code).toBe(1);
    const better = await harness(["diff", folder, path("better.json")]);
    expect(better.out).toContain("Nothing got worse.");
    expect(better.code).toBe(0);
  });
});

test.skipIf(!existsSync("/dev/full"))(
  "a report that cannot be written to a full disk is told in a line",
  async () => {
    const script = `exec "$0" "$1" report results.json --format markdown >/dev/full`;
    const argv = ["sh", "-c", script, process.execPath, HARNESS];
    const child = Bun.spawn(argv, { cwd: folder, stderr: "pipe" });
    expect(await child.stderr.text()).toMatch(
      /^openshell-e2e: report: it cannot be written to stdout: [^\n]+\n$/,
    );
    expect(await child.exited).toBe(2);
  },
);
