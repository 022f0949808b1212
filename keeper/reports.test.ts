// SPDX-License-Identifier: Apache-2.0

/** Where a run leaves its logs, nobody else's are lost. */
import { afterAll, expect, test } from "bun:test";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readSettings } from "../harness.ts";
import { openReports, saveLogs } from "./reports.ts";
import { Run } from "./run.ts";

const ROOT = join(import.meta.dir, "..");
const folder = mkdtempSync(join(tmpdir(), "rp-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const settingsFor = (reports: string) => readSettings([], { OPENSHELL_E2E_REPORTS: reports }).settings;

/** The folder of a run that wrote one log. */
function ranWith(id: string, log: string): Run {
  const path = join(folder, id);
  mkdirSync(path);
  writeFileSync(join(path, `${log}.log`), log);
  return Run.open(path);
}

test("a run's logs replace those of the run before", () => {
  const reports = openReports(settingsFor(join(folder, "ours")));
  saveLogs(ranWith("00000001", "gateway"), reports);
  expect(readdirSync(join(reports, "logs"))).toContain("gateway.log");
  openReports(settingsFor(reports));
  saveLogs(ranWith("00000002", "driver"), reports);
  expect(readdirSync(join(reports, "logs"))).toContain("driver.log");
  expect(readdirSync(join(reports, "logs"))).not.toContain("gateway.log");
});

test("a log with a long name, one that cannot be read, or one that is a link costs no other log", () => {
  const reports = openReports(settingsFor(join(folder, "odd")));
  const run = ranWith("00000031", "gateway");
  const deep = join(run.folder, "1", "d".repeat(150));
  mkdirSync(deep, { recursive: true });
  writeFileSync(join(deep, `${"é".repeat(100)}.log`), "long");
  // A name that is no text is another name once it was read.
  Bun.spawnSync(["sh", "-c", `touch "$0/$(printf '\\377').log"`, run.folder]);
  writeFileSync(join(folder, "private"), "private");
  symlinkSync(join(folder, "private"), join(run.folder, "driver.log"));
  saveLogs(run, reports);
  const logs = join(reports, "logs");
  const saved = readdirSync(logs).map((name) => readFileSync(join(logs, name), "utf8"));
  expect(saved).toContain("gateway");
  expect(saved).toContain("long");
  expect(saved).not.toContain("private");
});

test("nothing is read, changed or removed where a link leads that has the name of the logs", () => {
  const reports = openReports(settingsFor(join(folder, "linked")));
  const elsewhere = join(folder, "elsewhere");
  mkdirSync(elsewhere);
  symlinkSync(elsewhere, join(reports, "logs"));
  expect(() => openReports(settingsFor(reports))).toThrow("which holds what no run wrote");
  saveLogs(ranWith("00000041", "gateway"), reports);
  expect({ link: lstatSync(join(reports, "logs")).isSymbolicLink(), there: readdirSync(elsewhere) }).toEqual({
    link: true,
    there: [],
  });
});

test("runs that end at once leave one's logs, whole, and keep none from starting", async () => {
  const reports = openReports(settingsFor(join(folder, "many")));
  const code = `
    const { saveLogs } = await import("./keeper/reports.ts");
    const { Run } = await import("./keeper/run.ts");
    const run = Run.open(process.argv[1]);
    for (let i = 0; i < 100; i++) saveLogs(run, process.argv[2]);`;
  const children = ["00000011", "00000012", "00000013"].map((id) => {
    const { folder: path } = ranWith(id, id);
    return Bun.spawn([process.execPath, "-e", code, path, reports], { cwd: ROOT, stderr: "inherit" });
  });
  const all = Promise.all(children.map(({ exited }) => exited));
  const over = () => Promise.race([all.then(() => true), Bun.sleep(1).then(() => false)]);
  do openReports(settingsFor(reports));
  while (!(await over()));
  expect(await all).toEqual([0, 0, 0]);
  expect(readdirSync(reports)).toEqual(["logs"]);
  expect(readdirSync(join(reports, "logs"))).toHaveLength(2);
}, 30_000);

test("an empty folder of logs is taken", () => {
  const reports = join(folder, "empty");
  mkdirSync(join(reports, "logs"), { recursive: true });
  saveLogs(ranWith("00000003", "gateway"), openReports(settingsFor(reports)));
  expect(readdirSync(join(reports, "logs"))).toContain("gateway.log");
});

test("logs that no run wrote are refused, and stay", () => {
  const reports = join(folder, "theirs");
  mkdirSync(join(reports, "logs"), { recursive: true });
  writeFileSync(join(reports, "logs", "precious"), "");
  expect(() => openReports(settingsFor(reports))).toThrow(
    `OPENSHELL_E2E_REPORTS: a run replaces ${reports}/logs, which holds what no run wrote`,
  );
  saveLogs(ranWith("00000004", "gateway"), reports);
  expect(readdirSync(join(reports, "logs"))).toEqual(["precious"]);
});

const file = join(folder, "file");
writeFileSync(file, "");
const commands = [
  ["with", ["harness.ts", "with", "--", "touch", join(folder, "started")]],
  ["test", ["harness.ts", "test", "external-podman", "-t", "SM-02"]],
  ["bun test", ["test", "./scenarios/external-podman/smoke.test.ts", "-t", "SM-02"]],
] as const;
const refusals = commands.flatMap(([name, argv]) =>
  [file, "/proc/x"].map((path) => [name, path, argv] as const),
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
    /^openshell-e2e: OPENSHELL_E2E_REPORTS: a folder that can be written to was expected: [^\n]+$/m,
  );
  expect(errors).not.toMatch(/^\s+at /m);
  expect(await child.exited).toBe(2);
  expect(existsSync(join(folder, "started"))).toBe(false);
  expect(existsSync(runs) ? readdirSync(runs) : []).toEqual([]);
});
