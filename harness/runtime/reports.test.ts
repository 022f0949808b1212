// SPDX-License-Identifier: Apache-2.0

/** Where a run leaves its results and its logs; nobody else's are lost. */
import { ROOT } from "../base/root.ts";
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually } from "../base/waiting.ts";
import { readSettings } from "../base/settings.ts";
import type { Results, ScenarioResult } from "../report/model.ts";
import type { Entry } from "../report/record.ts";
import { begun } from "../report/scenario.ts";
import { clearReports, openReports, writeReports } from "./reports.ts";
import { Run } from "./run.ts";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

const folder = mkdtempSync(join(tmpdir(), "rp-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const settingsFor = (reports: string) => readSettings([], { OPENSHELL_E2E_REPORTS: reports }).settings;
const open = (name: string) => openReports(settingsFor(join(folder, name)));

/** The folder of a run that wrote one log. */
function ranWith(id: string, log: string): Run {
  const path = join(folder, id);
  mkdirSync(path, { recursive: true });
  writeFileSync(join(path, `${log}.log`), log);
  return Run.open(path);
}

/** What is recorded of a run of one scenario. */
function recordsOf(run: string, at = Date.now(), verdict: ScenarioResult["verdict"] = "pass"): Entry[] {
  const about = { suite: "s", id: "NE-01", title: "NE-01 a neighbour", file: "n.ts", line: 1 };
  return [
    { kind: "begin", at, run, command: "", stack: {} },
    { kind: "scenario", scenario: { ...begun(about), at, verdict } },
    { kind: "end", at: at + 1 },
  ];
}

/** Whose each of the files is that lie there, a run's id or what is in it. */
function owners(reports: string): Record<string, string> {
  const read = (name: string) => readFileSync(join(reports, name), "utf8");
  const idOf: Record<string, () => string | undefined> = {
    "results.json": () => (JSON.parse(read("results.json")) as Results).run.id,
    "junit.xml": () => /openshell-e2e (\w*)/.exec(read("junit.xml"))?.[1],
    "contract.md": () => "a table",
    logs: () => read("logs/.openshell-e2e"),
  };
  const there = readdirSync(reports).filter((name) => name !== ".openshell-e2e.lock");
  return Object.fromEntries(there.map((name) => [name, idOf[name]?.() ?? "unexpected"]));
}

test("a run's files replace all of those of the run before", () => {
  const reports = open("ours");
  const first = ranWith("00000001", "gateway");
  writeFileSync(join(first.folder, "contract.md"), "## Contract conformance of x");
  expect(writeReports({ entries: recordsOf(first.id), reports, run: first })).toEqual({});
  expect(owners(reports)).toEqual({
    "results.json": "00000001",
    "junit.xml": "00000001",
    "contract.md": "a table",
    logs: "00000001",
  });
  open("ours");
  const second = ranWith("00000002", "driver");
  expect(writeReports({ entries: recordsOf(second.id), reports, run: second })).toEqual({});
  expect(owners(reports)).toEqual({
    "results.json": "00000002",
    "junit.xml": "00000002",
    logs: "00000002",
  });
  expect(readdirSync(join(reports, "logs"))).not.toContain("gateway.log");
});

test("a log with a long name, one that cannot be read, or one that is a link costs no other log", () => {
  const reports = open("odd");
  const run = ranWith("00000031", "gateway");
  const deep = join(run.folder, "1", "d".repeat(150));
  mkdirSync(deep, { recursive: true });
  writeFileSync(join(deep, `${"é".repeat(100)}.log`), "long");
  // A name that is no text is another name once it was read.
  Bun.spawnSync(["sh", "-c", `touch "$0/$(printf '\\377').log"`, run.folder]);
  writeFileSync(join(folder, "private"), "private");
  symlinkSync(join(folder, "private"), join(run.folder, "driver.log"));
  writeReports({ entries: [], reports, run });
  const logs = join(reports, "logs");
  const saved = readdirSync(logs).map((name) => readFileSync(join(logs, name), "utf8"));
  expect(saved).toContain("gateway");
  expect(saved).toContain("long");
  expect(saved).not.toContain("private");
});

test("a run without scenarios leaves its logs alone, and is told of nothing that fails", () => {
  const reports = open("with");
  writeReports({ entries: recordsOf("00000001"), reports });
  expect(writeReports({ entries: [], reports, run: ranWith("00000003", "gateway") })).toEqual({});
  expect(owners(reports)).toEqual({
    "results.json": "00000001",
    "junit.xml": "00000001",
    logs: "00000003",
  });
});

test("what a run begins with is nothing of the run before", () => {
  const reports = open("begin");
  writeReports({ entries: recordsOf("00000001"), reports, run: ranWith("00000001", "gateway") });
  clearReports(reports);
  expect(owners(reports)).toEqual({});
});

test("a run that is swept long after its end takes nothing from one that began later", () => {
  const reports = open("swept");
  writeReports({ entries: recordsOf("0000000b", 2_000_000), reports });
  writeReports({ entries: recordsOf("0000000a", 1_000_000), reports, unlessLater: true });
  expect(owners(reports)).toEqual({ "results.json": "0000000b", "junit.xml": "0000000b" });
  writeReports({ entries: recordsOf("0000000c", 3_000_000), reports, unlessLater: true });
  expect(owners(reports)).toEqual({ "results.json": "0000000c", "junit.xml": "0000000c" });
});

/** A process that writes a run's files again and again. */
const WRITER = `
  const { writeReports } = await import("./harness/runtime/reports.ts");
  const { Run } = await import("./harness/runtime/run.ts");
  const [, folder, reports, entries, times] = process.argv;
  const run = Run.open(folder);
  console.log("ready");
  for (let i = 0; i < Number(times); i++) {
    const { problem } = writeReports({ entries: JSON.parse(entries), reports, run });
    if (problem) throw new Error(problem);
  }`;

function writer(id: string, reports: string, times: number) {
  const entries = JSON.stringify(recordsOf(id));
  const argv = ["-e", WRITER, ranWith(id, id).folder, reports, entries, String(times)];
  return Bun.spawn([process.execPath, ...argv], { cwd: ROOT, stdout: "pipe", stderr: "inherit" });
}

test("runs that end at once leave the files of one, whole, and keep none from starting", async () => {
  const reports = open("many");
  const writers = ["00000011", "00000012", "00000013"].map((id) => writer(id, reports, 60));
  const all = Promise.all(writers.map(({ exited }) => exited));
  const over = () => Promise.race([all.then(() => true), Bun.sleep(1).then(() => false)]);
  do open("many");
  while (!(await over()));
  expect(await all).toEqual([0, 0, 0]);
  const { logs = "", ...others } = owners(reports);
  expect(others).toEqual({ "results.json": logs, "junit.xml": logs });
  expect(readdirSync(join(reports, "logs")).toSorted()).toEqual([".openshell-e2e", `${logs}.log`]);
}, 30_000);

test("a run that is killed while it writes neither mixes two runs nor keeps the next one from writing", async () => {
  const reports = open("killed");
  for (let round = 0; round < 8; round++) {
    const [one, other] = ["00000021", "00000022"].map((id) => writer(id, reports, 100_000));
    for (const { stdout } of [one!, other!]) await stdout.getReader().read();
    await Bun.sleep(5 + round * 7);
    for (const child of [one!, other!]) child.kill("SIGKILL");
    await Promise.all([one!.exited, other!.exited]);
    // What it was about to write may lie there until the next one writes.
    const { ".openshell-e2e.new": _unfinished, ...whole } = owners(reports);
    expect(new Set(Object.values(whole)).size, JSON.stringify(whole)).toBeLessThanOrEqual(1);
    expect(writeReports({ entries: recordsOf("00000023"), reports })).toEqual({});
    expect(owners(reports)).toEqual({ "results.json": "00000023", "junit.xml": "00000023" });
  }
}, 30_000);

describe("what no run wrote", () => {
  const places = {
    "a folder of logs": (at: string) => {
      mkdirSync(join(at, "logs"));
      writeFileSync(join(at, "logs", "precious"), "");
    },
    "a link for the logs": (at: string) => symlinkSync(join(folder, "elsewhere"), join(at, "logs")),
    "another program's results.json": (at: string) =>
      writeFileSync(join(at, "results.json"), '{"suites":[]}'),
    "another program's junit.xml": (at: string) =>
      writeFileSync(join(at, "junit.xml"), '<?xml version="1.0"?><testsuites name="jest">'),
    "another contract.md": (at: string) => writeFileSync(join(at, "contract.md"), "# Of employment"),
    "a link for the results": (at: string) =>
      symlinkSync(join(folder, "elsewhere", "precious"), join(at, "results.json")),
    "a pipe for the results": (at: string) =>
      void Bun.spawnSync(["mkfifo", join(at, "results.json")], { stderr: "inherit" }),
    "a folder for the JUnit report": (at: string) => mkdirSync(join(at, "junit.xml")),
    "a link for the lock": (at: string) =>
      symlinkSync(join(folder, "elsewhere", "precious"), join(at, ".openshell-e2e.lock")),
  };
  mkdirSync(join(folder, "elsewhere"));
  writeFileSync(join(folder, "elsewhere", "precious"), "precious");
  afterAll(() => {
    expect(readdirSync(join(folder, "elsewhere"))).toEqual(["precious"]);
    expect(readFileSync(join(folder, "elsewhere", "precious"), "utf8")).toBe("precious");
  });

  test.each(Object.entries(places))("%s is refused at a run's start, and stays", (what, put) => {
    const reports = join(folder, `start-${what.replaceAll(/\W/g, "-")}`);
    mkdirSync(reports);
    put(reports);
    const before = readdirSync(reports);
    expect(() => openReports(settingsFor(reports))).toThrow(
      /^OPENSHELL_E2E_REPORTS: a run replaces \S+, which (holds what )?no run wrote\. Move that away, or name another folder$/,
    );
    expect(readdirSync(reports)).toEqual(before);
  });

  test.each(Object.entries(places))("%s that comes during a run stays at its end", (what, put) => {
    const reports = openReports(settingsFor(join(folder, `end-${what.replaceAll(/\W/g, "-")}`)));
    put(reports);
    const before = readdirSync(reports);
    const { problem } = writeReports({ entries: recordsOf("00000031"), reports });
    expect(problem).toMatch(/^the reports are not written: \S+: a run replaces .* no run wrote\./);
    expect(readdirSync(reports)).toEqual(before);
  });

  test("an empty folder of logs is taken", () => {
    const reports = join(folder, "empty");
    mkdirSync(join(reports, "logs"), { recursive: true });
    writeReports({ entries: [], reports: open("empty"), run: ranWith("00000032", "gateway") });
    expect(readdirSync(join(reports, "logs"))).toContain("gateway.log");
  });
});

test.each([
  ["a link", (at: string) => symlinkSync(join(folder, "elsewhere"), at), /is a symbolic link/],
  ["a file", (at: string) => writeFileSync(at, ""), /EEXIST|ENOTDIR/],
] as const)("a folder of reports that became %s during a run is not written to", (what, put, problem) => {
  const reports = open(`became-${what.slice(2)}`);
  rmSync(reports, { recursive: true });
  put(reports);
  expect(writeReports({ entries: recordsOf("00000041"), reports }).problem).toMatch(problem);
  expect(readdirSync(join(folder, "elsewhere"))).toEqual(["precious"]);
});

test("a folder of reports that was removed during a run is made again", () => {
  const reports = open("removed");
  rmSync(reports, { recursive: true });
  expect(writeReports({ entries: recordsOf("00000042"), reports })).toEqual({});
  expect(owners(reports)).toEqual({ "results.json": "00000042", "junit.xml": "00000042" });
});

test.each(["", "/"])("reports in the folder itself, however it is spelt, are one: %s", (end) => {
  const reports = join(folder, "spelt");
  mkdirSync(reports, { recursive: true });
  const { settings } = readSettings(["--reports", `${folder}//x/../spelt${end}`], {});
  expect(openReports(settings)).toBe(reports);
});

const file = join(folder, "file");
writeFileSync(file, "");
const link = join(folder, "link");
symlinkSync(folder, link);
const commands = [
  ["with", ["harness.ts", "with", "--", "touch", join(folder, "started")]],
  ["test", ["harness.ts", "test", "external-podman", "-t", "SM-02"]],
  ["check", ["harness.ts", "check", "--only", "DC-12"]],
  ["bun test", ["test", "./scenarios/external-podman/smoke.test.ts", "-t", "SM-02"]],
] as const;
const refusals = commands.flatMap(([name, argv]) =>
  [file, "/proc/x", "/", link].map((path) => [name, path, argv] as const),
);

test.each(refusals)("%s with reports in %s is refused before anything starts", async (_, reports, argv) => {
  const runs = join(folder, "runs");
  const env = { PATH: process.env.PATH, HOME: process.env.HOME, OPENSHELL_E2E_RUN_DIR: runs };
  const child = Bun.spawn([process.execPath, ...argv], {
    cwd: ROOT,
    env: { ...env, OPENSHELL_E2E_REPORTS: reports },
    stdout: "ignore",
    stderr: "pipe",
  });
  const errors = await child.stderr.text();
  expect(errors).toMatch(
    /^openshell-e2e: OPENSHELL_E2E_REPORTS: (a folder .* was expected: |\S+ is a symbolic link)[^\n]*$/m,
  );
  expect(errors).not.toMatch(/^\s+at /m);
  expect(await child.exited).toBe(2);
  expect(existsSync(join(folder, "started"))).toBe(false);
  expect(existsSync(runs) ? readdirSync(runs) : []).toEqual([]);
});

/** Starts a run of scenarios of fakes. */
function start(reports: string, pattern: string, more: Record<string, string> = {}) {
  return Bun.spawn([process.execPath, "harness.ts", "test", "external-podman", "-t", pattern], {
    cwd: ROOT,
    env: {
      PATH: process.env.PATH,
      HOME: process.env.HOME,
      OPENSHELL_E2E_FAKE: "gateway,driver,engine,supervisor",
      OPENSHELL_E2E_REPORTS: reports,
      ...more,
    },
    timeout: 60_000,
    ...{ stdin: "ignore", stdout: "pipe", stderr: "pipe" },
  });
}

test("a run tells its own numbers and failures, whatever another one leaves in the folder meanwhile", async () => {
  const reports = open("shared");
  const child = start(reports, "SM-02");
  const [out, err] = [child.stdout.text(), child.stderr.text()];
  // A neighbour that failed, of which -t had left nothing out, and which began later.
  while (child.exitCode === null) {
    writeReports({ entries: recordsOf("0000dead", Date.now() + 60_000, "fail"), reports });
    await Bun.sleep(20);
  }
  expect(await out).toMatch(/^external-podman: 1 passed, 0 failed, 0 skipped \(1\d\d not selected\)$/m);
  expect(await err).not.toContain("NE-01");
  expect(await child.exited).toBe(0);
}, 70_000);

test.each([
  ["a file in its place", (at: string) => writeFileSync(at, "")],
  ["a link in its place", (at: string) => symlinkSync(join(folder, "elsewhere"), at)],
])(
  "a run that cannot write its reports says so once, leaves nothing, and is exit code 2: %s",
  async (_, put) => {
    const place = mkdtempSync(join(folder, "un-"));
    const [runs, reports] = [join(place, "r"), join(place, "reports")];
    const child = start(reports, "SM-02", { OPENSHELL_E2E_RUN_DIR: runs });
    const [out, err] = [child.stdout.text(), child.stderr.text()];
    const begun = () => {
      if (new Bun.Glob("*/records-test-*").scanSync(runs).next().done) throw new Error("not begun");
    };
    await eventually(begun, { what: "the run's records", deadlineMs: 20_000 });
    renameSync(reports, `${reports}.gone`);
    put(reports);
    expect(await child.exited).toBe(2);
    expect(await out).toContain("1 pass");
    const said = (await err).split("\n").filter((line) => line.startsWith("openshell-e2e: "));
    expect(said).toEqual([expect.stringMatching(/^openshell-e2e: the reports are not written: .*reports: /)]);
    await eventually(() => expect(readdirSync(runs)).toEqual([]), { what: "nothing left" });
    expect(lstatSync(reports).isDirectory()).toBe(false);
  },
  70_000,
);
