// SPDX-License-Identifier: Apache-2.0

/** `test` as a terminal and as a log see it. */
import { ROOT } from "../base/root.ts";
import { Glob } from "bun";
import { expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { stripVTControlCharacters } from "node:util";
import { XmlDocument, XsdValidator } from "libxml2-wasm";
import { eventually } from "../base/waiting.ts";
import type { Results } from "../report/model.ts";
import { CLEAR } from "../report/progress.ts";
import { otherTests } from "./test.ts";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

const HARNESS = join(ROOT, "harness.ts");

/** Runs one scenario. Resolves with what a terminal was sent, or what stands in a log. */
async function smoke(
  on: "terminal" | "log",
  env: Record<string, string> = {},
  suite = "external-podman",
): Promise<string> {
  let sent = "";
  const terminal = { cols: 100, data: (_: unknown, piece: Uint8Array) => (sent += Buffer.from(piece)) };
  const reports = mkdtempSync(join(tmpdir(), "progress-"));
  const child = Bun.spawn([process.execPath, HARNESS, "test", suite, "-t", "SM-02"], {
    env: {
      PATH: process.env.PATH,
      HOME: homedir(),
      TERM: "xterm",
      OPENSHELL_E2E_FAKE: "gateway,driver,engine,supervisor",
      OPENSHELL_E2E_REPORTS: reports,
      ...env,
    },
    timeout: 30_000,
    ...(on === "terminal" ? { terminal } : { stdin: "ignore", stdout: "pipe", stderr: "pipe" }),
  });
  const streams = [child.stdout, child.stderr].map((stream) => stream && new Response(stream).text());
  const text = await Promise.all(streams);
  const code = await child.exited;
  rmSync(reports, { recursive: true });
  expect(code, sent + text.join("")).toBe(0);
  return on === "terminal" ? sent : text.join("");
}

function coloured(sent: string): boolean {
  const text = sent.replaceAll(CLEAR, "");
  return stripVTControlCharacters(text) !== text;
}

test("a terminal's last line says what runs and how it stands, and is gone in the end", async () => {
  const sent = await smoke("terminal");
  expect(sent).toMatch(/\d+ ms · SM-02 \d+ ms/);
  expect(sent).toMatch(/1 pass\b.* · /);
  expect(sent.split(CLEAR).at(-1)).toContain("external-podman: 1 passed, 0 failed");
  expect(coloured(sent)).toBe(true);
});

test("without colours the line is there all the same", async () => {
  const sent = await smoke("terminal", { NO_COLOR: "1" });
  expect(sent).toMatch(/\d+ ms · SM-02 \d+ ms/);
  expect(coloured(sent)).toBe(false);
});

test.each([
  ["a log", "log", {}],
  ["a terminal that CI reads as a log", "terminal", { CI: "true" }],
  ["a terminal that understands no control sequences", "terminal", { TERM: "dumb" }],
] as const)("%s has no such line", async (_, on, env) => {
  const sent = await smoke(on, env);
  expect(sent).not.toContain(CLEAR);
  expect(sent).toContain("SM-02");
});

test("a suite may be named as a shell completes it", async () => {
  expect(await smoke("log", {}, "external-podman/")).toContain("external-podman: 1 passed");
  expect(await smoke("log", {}, "./scenarios/external-podman/")).toContain("external-podman: 1 passed");
});

test("from another folder, its driver is found and its reports are left together", async () => {
  const folder = mkdtempSync(join(tmpdir(), "elsewhere-"));
  writeFileSync(join(folder, "my-driver"), "#!/bin/sh\necho my last words >&2; exit 3\n", { mode: 0o755 });
  const child = Bun.spawn([process.execPath, HARNESS, "test", "external-podman", "-t", "SM-02"], {
    cwd: folder,
    env: {
      PATH: process.env.PATH,
      HOME: homedir(),
      OPENSHELL_DRIVER_CMD: "./my-driver {socket}",
      OPENSHELL_E2E_REPORTS: "the/reports",
    },
    timeout: 60_000,
    ...{ stdin: "ignore", stdout: "ignore", stderr: "pipe" },
  });
  expect(await child.stderr.text()).toContain("my last words");
  expect(await child.exited).toBe(2);
  expect(readdirSync(join(folder, "the", "reports"))).toContain("results.json");
  rmSync(folder, { recursive: true });
}, 70_000);

/** Runs scenarios in a log, with all faked. Resolves with what stands in it, how it ended, and its reports. */
async function run(args: string[]) {
  const reports = mkdtempSync(join(tmpdir(), "run-"));
  const child = Bun.spawn([process.execPath, HARNESS, "test", "external-podman", ...args], {
    env: {
      PATH: process.env.PATH,
      HOME: homedir(),
      OPENSHELL_E2E_FAKE: "gateway,driver,engine,supervisor",
      OPENSHELL_E2E_REPORTS: reports,
    },
    timeout: 60_000,
    ...{ stdin: "ignore", stdout: "pipe", stderr: "pipe" },
  });
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  const read = (name: string) =>
    existsSync(join(reports, name)) ? readFileSync(join(reports, name), "utf8") : "";
  const [junit, json] = [read("junit.xml"), read("results.json")];
  rmSync(reports, { recursive: true });
  return { out, err, code, junit, results: json ? (JSON.parse(json) as Results) : undefined };
}

test("the JUnit report of scenarios is valid, and has each where it stands", async () => {
  const { junit, code } = await run(["-t", "SM-0[12]"]);
  expect(code).toBe(0);
  using schema = XmlDocument.fromString(
    readFileSync(join(ROOT, "harness", "report", "fixtures", "jenkins-junit.xsd"), "utf8"),
  );
  using document = XmlDocument.fromString(junit);
  XsdValidator.fromDoc(schema).validate(document);
  const names = document.find("//testcase/@classname").map(({ content }) => content);
  expect(names).toEqual(["external-podman.smoke", "external-podman.smoke"]);
});

test("what -t leaves out is no skip, neither in the last line nor in the reports", async () => {
  const { out, results } = await run(["-t", "SM-02|SE-10"]);
  expect(out).toMatch(/^external-podman: 1 passed, 0 failed, 1 skipped \(\d+ not selected\)$/m);
  expect(results?.scenarios.map(({ id, verdict }) => [id, verdict]).toSorted()).toEqual([
    ["SE-10", "skip"],
    ["SM-02", "pass"],
  ]);
  expect(Math.min(...results!.scenarios.map(({ at }) => at))).toBeGreaterThanOrEqual(0);
  expect(results?.run.command).toBe("bun harness.ts test external-podman -t 'SM-02|SE-10'");
  const unselected = Number(/(\d+) not selected/.exec(out)?.[1]);
  expect(unselected).toBeGreaterThan(100);
  expect(results!.run.unselected).toBe(unselected);
});

test.each([
  ["a pattern that no title matches", "NOPE", "no scenario's title matches NOPE"],
  ["a pattern that is none", "SM-(", "-t: a regular expression was expected: SM-("],
  ["a scenario that is skipped", "SE-10", "all that was chosen is skipped, for the reasons above"],
])("%s is one line, and exit code 2: nothing ran", async (_, pattern, line) => {
  const { err, code } = await run(["-t", pattern]);
  const ours = err.split("\n").filter((each) => each.startsWith("openshell-e2e: "));
  expect(ours).toEqual([`openshell-e2e: ${line}`]);
  expect(code).toBe(2);
});

test("of a scenario that is killed the report has the stack, the sandbox and the logs", async () => {
  const folder = mkdtempSync(join(tmpdir(), "kill-"));
  const child = Bun.spawn([process.execPath, HARNESS, "test", "external-podman", "-t", "LC-03"], {
    env: {
      PATH: process.env.PATH,
      HOME: homedir(),
      OPENSHELL_E2E_FAKE: "gateway,driver,engine,supervisor",
      OPENSHELL_E2E_REPORTS: join(folder, "reports"),
      OPENSHELL_E2E_RUN_DIR: folder,
    },
    timeout: 60_000,
    ...{ stdin: "ignore", stdout: "ignore", stderr: "ignore" },
  });
  const find = (pattern: string) => [...new Glob(pattern).scanSync({ cwd: folder, absolute: true })];
  const recorded = () => {
    const [records = ""] = find("**/records-test-*.jsonl");
    if (!/"sandboxes":\["/.test(readFileSync(records, "utf8"))) throw new Error("no sandbox yet");
    return records;
  };
  const records = await eventually(recorded, { what: "a sandbox", deadlineMs: 20_000 });
  process.kill(Number(/records-test-(\d+)/.exec(records)![1]), "SIGKILL");
  const written = () => JSON.parse(readFileSync(join(folder, "reports", "results.json"), "utf8")) as Results;
  const { scenarios } = await eventually(written, { what: "a report", deadlineMs: 20_000 });
  expect(await child.exited).toBe(137);
  expect(scenarios).toMatchObject([
    { id: "LC-03", verdict: "cut", stack: 1, sandboxes: [expect.any(String)] },
  ]);
  expect(scenarios[0]!.ms).toBeGreaterThan(0);
  const junit = readFileSync(join(folder, "reports", "junit.xml"), "utf8");
  expect(junit).toMatch(/<error type="cut" message="the run was cut off"/);
  expect(scenarios[0]!.logs.gateway.length).toBeGreaterThan(0);
  // The keeper's last act.
  const over = () => expect(find("**/records-*")).toEqual([]);
  await eventually(over, { what: "the end of the run", deadlineMs: 20_000 });
  // The guard may be about to look whether anything is left.
  rmSync(folder, { recursive: true, force: true });
}, 70_000);

test("a driver that does not start ends the run, which says so on the terminal and in the report", async () => {
  const reports = mkdtempSync(join(tmpdir(), "no-start-"));
  writeFileSync(join(reports, "junit.xml"), '<testsuites name="openshell-e2e of the run before"/>');
  const child = Bun.spawn([process.execPath, HARNESS, "test", "external-podman", "-t", "SM-0"], {
    env: {
      PATH: process.env.PATH,
      HOME: homedir(),
      OPENSHELL_E2E_FAKE: "gateway,engine,supervisor",
      OPENSHELL_DRIVER_CMD: `sh -c 'echo "Error: cannot read driver.toml" >&2; exit 3' {socket}`,
      OPENSHELL_E2E_REPORTS: reports,
    },
    timeout: 60_000,
    ...{ stdin: "ignore", stdout: "ignore", stderr: "pipe" },
  });
  const said = await child.stderr.text();
  expect(await child.exited).toBe(2);
  expect(said).toContain("driver  The driver did not come up: it ended with exit code 3");
  expect(said).toContain("Error: cannot read driver.toml");
  expect(said).toContain("Next:");
  const quoted = String.raw`'sh -c '\''echo "Error: cannot read driver.toml" >&2; exit 3'\'' {socket}'`;
  expect(said).toContain(`  Again: OPENSHELL_DRIVER_CMD=${quoted} bun run e2e -- -t SM-0`);
  const { run, scenarios } = JSON.parse(readFileSync(join(reports, "results.json"), "utf8")) as Results;
  expect(run.cutOff).toBe(true);
  const begun = scenarios.filter(({ verdict }) => verdict !== "skip");
  expect(begun.map(({ verdict }) => verdict)).toEqual(begun.map(() => "error"));
  expect(begun[0]?.reason).toContain("it ended with exit code 3");
  const junit = readFileSync(join(reports, "junit.xml"), "utf8");
  expect(junit.match(/<error type="error"/g)).toHaveLength(begun.length);
  expect(junit).not.toContain("run before");
  rmSync(reports, { recursive: true });
}, 70_000);

test.each(["--rerun-each=2", "--isolate", "--test-name-pattern=SM-02"])(
  "what is not selected is no skip with bun's own %s either",
  async (flag) => {
    const { out, code } = await run(["-t", "SM-0", "--", flag]);
    expect(out).toMatch(/^external-podman: \d passed, 0 failed, 0 skipped \(\d+ not selected\)$/m);
    expect(code).toBe(0);
  },
);

test.each(["--reporter=dots", "--reporter-outfile=x.xml"])(
  "%s, which would replace our report, is refused",
  async (flag) => {
    const { err, code } = await run(["-t", "SM-0", "--", flag]);
    expect(err).toMatch(/^openshell-e2e: test: --reporter[^\n]+--dots[^\n]+\n$/);
    expect(code).toBe(2);
  },
);

test("scenarios that bun runs again after the run's end fail nothing and nobody: the run stops with what to do", async () => {
  const { out, err, code } = await run(["-t", "SE-0[1-3]", "--", "--rerun-each=2"]);
  expect(out + err).not.toContain("(fail)");
  expect(out + err).toMatch(
    /^openshell-e2e: bun runs its last file again after the run's end [^\n]+ for i in [^\n]+$/m,
  );
  expect(code).toBe(2);
});

test("without a suite every test file of the checkout is run", () => {
  const beside = ["node_modules", "scenarios", ".*"].flatMap((name) => ["-not", "-path", `./${name}/*`]);
  const { stdout } = Bun.spawnSync(["find", ".", "-name", "*.test.ts", ...beside], { cwd: ROOT });
  const there = stdout.toString().trim().split("\n").toSorted();
  expect(otherTests().map((file) => `./${file}`)).toEqual(there);
  expect(there).toContain("./harness/runtime/reports.test.ts");
});
