// SPDX-License-Identifier: Apache-2.0

/** `check` as its user meets it. */
import { ROOT } from "../base/root.ts";
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { commands } from "../conformance/backend.ts";
import { Driver } from "../conformance/driver.ts";
import type { Results } from "../report/model.ts";

const folder = mkdtempSync(join(tmpdir(), "ck-"));
const runs = join(folder, "runs");
const env = { PATH: process.env.PATH, HOME: process.env.HOME, OPENSHELL_E2E_RUN_DIR: runs };
setDefaultTimeout(60_000);

/** Starts `bun harness.ts …`, with reports of its own, or those of an earlier run. */
function start(args: string[], reports = mkdtempSync(join(folder, "reports-"))) {
  const child = Bun.spawn([process.execPath, "harness.ts", ...args], {
    cwd: ROOT,
    env: { ...env, OPENSHELL_E2E_REPORTS: reports },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  let output = "";
  const shown = Promise.withResolvers<void>();
  let wanted = "";
  const errors = child.stderr.text();
  const reading = (async () => {
    for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) {
      output += text;
      if (wanted && output.includes(wanted)) shown.resolve();
    }
    shown.resolve();
  })();
  return {
    child,
    reports,
    /** Resolves once it has printed that, with all that it printed by then. */
    shows: async (text: string) => {
      wanted = text;
      if (!output.includes(text)) await shown.promise;
      expect(output).toContain(text);
      return output;
    },
    ended: async () => {
      await reading;
      return { code: await child.exited, output, errors: await errors, reports };
    },
  };
}

/** A driver that somebody else started. */
let kept: ReturnType<typeof start>;
let socket = "";
beforeAll(async () => {
  kept = start(["up"]);
  socket = /^driver +(\S+)$/m.exec(await kept.shows("Ctrl-C"))?.[1] ?? "";
});
afterAll(async () => {
  kept.child.kill();
  await kept.ended();
  rmSync(folder, { recursive: true, force: true });
});

const CRASHES = `${process.execPath} ${join(ROOT, "harness", "conformance", "hostile.fixture.ts")} crashes`;

const resultsIn = (reports: string) =>
  JSON.parse(readFileSync(join(reports, "results.json"), "utf8")) as Results;

/** Ids of sandboxes that the driver has. */
async function sandboxesOf(socket: string): Promise<string[]> {
  const driver = new Driver(socket);
  const ids = (await driver.list()).map(({ id }) => id);
  driver.close();
  return ids;
}

test.each([
  ["SIGINT", 130],
  ["SIGTERM", 143],
] as const)(
  "%s ends a check of a running driver with counts, results, and no sandbox",
  async (signal, code) => {
    const run = start(["check", "--socket", socket, "--only", "D,F"]);
    await run.shows("pass ");
    run.child.kill(signal);
    const { code: seen, output, errors } = await run.ended();
    expect(errors).toStartWith(`${signal}: nothing more is begun`);
    const [, asked, all] = /^ended by SIG\w+: (\d+) of (\d+) rules were asked$/m.exec(output) ?? [];
    expect(Number(asked)).toBeLessThan(Number(all));
    expect(output).toMatch(/^Results: .*results\.json$/m);
    expect(output.trim().split("\n").at(-1)).toMatch(/^driver-contract: \d+ passed, /);
    expect(seen).toBe(code);
    expect(resultsIn(run.reports).run.cutOff).toBe(true);
    expect(await sandboxesOf(socket)).toEqual([]);
  },
);

test("the first line names who takes part, and nobody else", async () => {
  const fake = await start(["check", "--only", "DC-12"]).ended();
  expect(fake.output).toStartWith("driver fake · engine fake · supervisor probe\n");
  expect(fake.code).toBe(0);
  expect(resultsIn(fake.reports).stack.gateway.label).not.toBe("fake");
  const custom = await start(["check", "--driver", `${CRASHES} {socket}`, "--only", "DC-12"]).ended();
  expect(custom.output).toMatch(
    /^driver \S+ \(custom\) · engine the driver's own · supervisor the driver's own\n/,
  );
});

test("the table for a driver's README says what was not asked, and is gone when nothing could be", async () => {
  const some = await start([
    "check",
    "--socket",
    `unix://${socket}`,
    "--only",
    "DC-2,DC-12,DC-30,DC-45",
  ]).ended();
  const table = () => readFileSync(join(some.reports, "contract.md"), "utf8");
  expect(table()).toMatch(
    /^Only \d of 1\d\d rules were asked\.\n\d+ MUST rules kept, 0 broken, \d+ not checked; /m,
  );
  const count = (verdict: string) =>
    [...table().matchAll(new RegExp(`\\| MUST \\| ${verdict} \\|`, "g"))].length;
  const kept = `${count("pass")} MUST rules kept, 0 broken, ${count("skip")} not checked`;
  expect(table()).toContain(kept);
  expect(count("skip")).toBeGreaterThan(0);
  await start(["check", "--driver", "false {socket}", "--only", "DC-12"], some.reports).ended();
  expect(existsSync(join(some.reports, "contract.md"))).toBe(false);
});

test("a driver that cannot be started as it is named is one line", async () => {
  const driver = "sh {socket} {supervisor_image}";
  const { code, errors } = await start(["check", "--driver", driver]).ended();
  expect(errors).toMatch(/^openshell-e2e: The driver's command has \{supervisor_image\}, [^\n]+\n$/);
  expect(code).toBe(2);
});

test("a failed check is asked again of the same driver", async () => {
  const { output } = await start([
    "check",
    "--driver",
    `${CRASHES} {socket} 'a word'`,
    "--only",
    "DC-45",
  ]).ended();
  const quoted = String.raw`'${CRASHES} {socket} '\''a word'\'''`;
  expect(output).toContain(`  again:  bun harness.ts check --only DC-45 --driver ${quoted}\n`);
});

test.each([
  ["--backend-list", "/bin/nosuch {id}", "no such program: /bin/nosuch: /bin/nosuch {id}"],
  ["--backend-kill", "nosuch {id}", "no such program: nosuch: nosuch {id}"],
  ["--backend-remove", "rm '{id}", "a quote is not closed: rm '{id}"],
  ["--backend-list", "sh -c 'echo no backend >&2; exit 4'", "exit code 0 was expected"],
  ["--backend-list", "sh -c 'sleep 600 & exit 4'", "exit code 0 was expected"],
  ["--backend-kill", "/ {id}", "a folder, not a program: /: / {id}"],
])("%s %s is no verdict on the driver", async (flag, command, problem) => {
  const { code, output, errors } = await start([
    "check",
    "--socket",
    socket,
    "--only",
    "DC-75",
    flag,
    command,
  ]).ended();
  expect(errors).toStartWith(`openshell-e2e: ${flag}: ${problem}`);
  if (command.includes("echo")) expect(errors).toContain("exit code 4: no backend");
  expect(output).not.toContain("DC-75");
  expect(code).toBe(2);
});

test("a backend's command is split as a driver's is: quotes hold words together", async () => {
  const list = `sh -c 'echo "$1 is there"' sh {id}`;
  const backend = await commands({ list });
  const id = crypto.randomUUID();
  expect(await backend.list!(id)).toEqual([`${id} is there`]);
  const nasty = await commands({ list: String.raw`printf '%s\n' {id} '{"id": "it'"'"'s {id}"}'` });
  expect(await nasty.list!(id)).toEqual([id, `{"id": "it's ${id}"}`]);
});

test("what a backend's command leaves in the background is not waited for", async () => {
  const backend = await commands({ list: "sh -c 'sleep 600 & echo $0 {id}'" });
  const began = performance.now();
  const id = crypto.randomUUID();
  expect(await backend.list!(id)).toEqual([`sh ${id}`]);
  expect(performance.now() - began).toBeLessThan(5_000);
});

test("SIGINT ends a check that started its driver, and nothing is left", async () => {
  const before = readdirSync(runs);
  const run = start(["check", "--only", "D,F"]);
  await run.shows("pass ");
  run.child.kill("SIGINT");
  const { code, output } = await run.ended();
  expect(output).toMatch(/^ended by SIGINT: \d+ of \d+ rules were asked$/m);
  expect(code).toBe(130);
  expect(resultsIn(run.reports).run.cutOff).toBe(true);
  expect(readdirSync(runs)).toEqual(before);
});

test("SIGINT ends a wait for a driver that does not come up", async () => {
  const run = start(["check", "--driver", "sleep 1000 {socket}"]);
  await run.shows("driver sleep (custom)");
  const began = performance.now();
  run.child.kill("SIGINT");
  expect((await run.ended()).code).toBe(130);
  expect(performance.now() - began).toBeLessThan(15_000);
});
