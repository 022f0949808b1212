// SPDX-License-Identifier: Apache-2.0

/** Nothing is left behind, whoever is killed, and whenever. */
import { ROOT } from "../base/root.ts";
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { eventually } from "../base/waiting.ts";
import { Gateway } from "../client/gateway.ts";
import { isAlive } from "../base/system.ts";
import { readSettings } from "../base/settings.ts";
import { tailOf } from "../base/log.ts";
import { Connection } from "./connection.ts";
import { processesOf, processTable } from "./processes.ts";
import { Run } from "./run.ts";
import { readResults } from "../report/read.ts";
import type { StackInfo } from "./stack.ts";

/** A folder for the runs of this file alone. */
const runs = mkdtempSync(join(tmpdir(), "kt-"));
afterAll(() => rmSync(runs, { recursive: true, force: true }));

const environment = {
  ...process.env,
  OPENSHELL_E2E_RUN_DIR: runs,
  // Whatever runs this file has a stack of its own.
  OPENSHELL_E2E_ATTACH: "1",
  OPENSHELL_E2E_REPORTS: join(runs, "reports"),
};
const { settings } = readSettings([], environment);

/** What issue and README promise: gone within 5 s, plus what an orphaned run needs to be noticed by a loaded machine. */
const GONE_MS = 5_000;

const VICTIMS = ["the test process", "the keeper", "both"] as const;

type Held = StackInfo & { sandboxId: string };

const startFixture = <Output extends "pipe" | "ignore">(
  stdout: Output,
  more: Record<string, string> = {},
  name: "hold" | "over" = "hold",
) =>
  Bun.spawn([process.execPath, "test", "--timeout=600000", `./harness/runtime/${name}.fixture.ts`], {
    cwd: ROOT,
    env: { ...environment, ...more },
    stdout,
    stderr: stdout,
  });

/** Starts a test process that holds a Ready sandbox, and waits until it does. */
async function hold(more?: Record<string, string>) {
  const child = startFixture("pipe", more);
  let printed = "";
  for await (const chunk of child.stdout as unknown as AsyncIterable<Uint8Array>) {
    printed += Buffer.from(chunk).toString();
    const held = /HOLDING (.*)\n/.exec(printed);
    if (held) return { child, held: JSON.parse(held[1] as string) as Held };
  }
  throw new Error(`the fixture ended: ${printed}`);
}

/** Waits until no process and no folder of any run of this file is left. */
async function nothingLeft(): Promise<void> {
  await eventually(
    () => {
      const left = Run.all(settings).map((run) => [
        `${run.folder}, of which the keeper's last records are`,
        tailOf(join(run.folder, "records-keeper.jsonl"), 8),
        ...processesOf(run).map(({ pid, command }) => `process ${pid}: ${command.slice(0, 150)}`),
      ]);
      if (left.length > 0) throw new Error(left.flat().join("\n"));
    },
    { what: "nothing left of the run", deadlineMs: GONE_MS },
  );
}

/** Waits until those processes have ended. */
function ended(pids: Record<string, number>): Promise<void> {
  return eventually(() => expect(Object.entries(pids).filter(([, pid]) => isAlive(pid))).toEqual([]), {
    what: "the run's processes have ended",
    deadlineMs: GONE_MS,
  });
}

/** The keeper of a run of this file, if one has been started by now. */
function findKeeper(): number | undefined {
  return processTable().find(
    ({ command }) => /^\S*bun\S* .*harness\.ts keep /.test(command) && command.includes(runs),
  )?.pid;
}

const findEngines = () =>
  processTable().filter(
    ({ command }) => /\/engine-[0-9a-f]+ --root /.test(command) && command.includes(runs),
  );

setDefaultTimeout(60_000);

const kill = (pid: number) => process.kill(pid, "SIGKILL");

/** What was known is written down, whoever is left to do it, and says that it is not the whole. */
function expectCutOff(run: string): void {
  const results = readResults(join(runs, "reports"));
  expect(results.run).toMatchObject({ id: run, cutOff: true });
  expect(results.scenarios).toMatchObject([{ id: "HO-01", verdict: "cut" }]);
}

test("an engine that is gone keeps nothing else up, and what was known is in the results", async () => {
  const { child, held } = await hold();
  const engine = findEngines()[0]!;
  kill(engine.pid);
  await ended({ engine: engine.pid });
  kill(child.pid);
  await ended(held.pids);
  await nothingLeft();
  expectCutOff(basename(dirname(held.folder)));
  const { leftovers } = readResults(join(runs, "reports"));
  expect(leftovers.join("\n")).toContain("nobody listens there");
});

test("a sweep that starts a dead engine again leaves neither it nor the folder", async () => {
  const { child, held } = await hold();
  kill(findKeeper()!);
  kill(findEngines()[0]!.pid);
  kill(child.pid);
  await nothingLeft();
  // What ends after the folder was removed could make it again.
  expect(findEngines()).toEqual([]);
  await ended(held.pids);
});

test("a guard does its work though a program that the settings name is gone by then", async () => {
  const cli = join(runs, "openshell");
  writeFileSync(cli, "", { mode: 0o755 });
  const { child, held } = await hold({ OPENSHELL_BIN: cli });
  rmSync(cli);
  kill(held.pids.keeper);
  kill(child.pid);
  await nothingLeft();
  await ended(held.pids);
});

describe("after a SIGKILL of", () => {
  test.each(VICTIMS)("%s, the stack is gone, and what was known is in the results", async (victims) => {
    const { child, held } = await hold();
    if (victims !== "the test process") kill(held.pids.keeper);
    if (victims !== "the keeper") kill(child.pid);
    await nothingLeft();
    await ended(held.pids);
    expectCutOff(basename(dirname(held.folder)));
    child.kill("SIGKILL");
    await child.exited;
  });
});

/** How many kills; `bun run torture` does 200. */
const KILLS = Number(process.env.OPENSHELL_E2E_KILLS ?? 9);
const STATES = ["starting", "running", "stopping"] as const;
const kills = Array.from({ length: KILLS }, (_, index) => ({
  kill: index + 1,
  state: STATES[index % 3]!,
  victims: VICTIMS[Math.floor(index / 3) % 3]!,
}));

test.each(kills)(
  "kill $kill: $victims, while the stack is $state, leaves nothing",
  async ({ state, victims }) => {
    const child = await inState(state);
    const keeper = findKeeper();
    if (victims !== "the test process" && keeper) kill(keeper);
    if (victims !== "the keeper") child.kill("SIGKILL");
    await eventually(
      () => {
        // A test process whose keeper is gone ends by itself only once its test does.
        if (victims === "the keeper") child.kill("SIGKILL");
        if (isAlive(child.pid) && child.exitCode === null && child.signalCode === null)
          throw new Error("it lives");
      },
      { what: "the test process has ended" },
    );
    await nothingLeft();
    await eventually(() => expect(findKeeper()).toBeUndefined(), {
      what: "the keeper has ended, which removed all of it",
      deadlineMs: GONE_MS,
    });
  },
);

/** A test process whose stack is starting, is in the middle of a scenario, or is stopping, at no particular moment. */
async function inState(state: (typeof STATES)[number]) {
  if (state === "starting") {
    const child = startFixture("ignore");
    await Bun.sleep(Math.random() * 700);
    return child;
  }
  const { child } = await hold();
  if (state === "stopping") child.kill("SIGTERM");
  await Bun.sleep(Math.random() * (state === "stopping" ? 150 : 50));
  return child;
}

test("a kept stack outlives a test process that is killed, and loses that one's sandboxes", async () => {
  const kept = Bun.spawn([process.execPath, "harness.ts", "up"], {
    cwd: ROOT,
    env: environment,
    stdout: "pipe",
  });
  for await (const chunk of kept.stdout as unknown as AsyncIterable<Uint8Array>) {
    if (Buffer.from(chunk).includes("Ctrl-C")) break;
  }
  const { child, held } = await hold();
  const gateway = new Gateway(held);
  expect(await gateway.listSandboxes()).toHaveLength(1);
  kill(child.pid);
  await eventually(async () => expect(await gateway.listSandboxes()).toEqual([]), {
    what: "no sandbox stays",
  });
  gateway.close();
  expect(kept.exitCode).toBeNull();
  kept.kill("SIGINT");
  expect(await kept.exited).toBe(0);
  await nothingLeft();
});

test("four runs at once do not notice each other", async () => {
  const run = () =>
    Bun.spawn(
      [process.execPath, "harness.ts", "with", "--", "sh", "-c", "echo $OPENSHELL_GATEWAY_ENDPOINT"],
      {
        cwd: ROOT,
        env: environment,
        stdout: "pipe",
        stderr: "ignore",
      },
    );
  const results = await Promise.all(
    Array.from({ length: 4 }, run).map(
      async (child) => [await child.stdout.text(), await child.exited] as const,
    ),
  );
  expect(results.map(([, code]) => code)).toEqual([0, 0, 0, 0]);
  expect(new Set(results.map(([endpoint]) => endpoint)).size).toBe(4);
  await nothingLeft();
});

test("a terminated test process leaves nothing", async () => {
  const { child } = await hold();
  child.kill("SIGTERM");
  await nothingLeft();
  expect(existsSync(runs)).toBe(true);
});

test("scenarios that end badly fail with their own reason, and leave nothing to those that come after", async () => {
  const child = startFixture("pipe", {}, "over");
  const said = (await Promise.all([child.stdout.text(), child.stderr.text()])).join("");
  for (const reason of ["the reason of OV-01", "not within 10 ms", "not within 1 ms", "the reason of OV-05"])
    expect(said).toContain(`rror: ${reason.startsWith("not") ? `The scenario: ${reason}` : reason}`);
  expect(said).toContain("(pass) OV-04");
  expect(await child.exited).not.toBe(0);
  await nothingLeft();
});

test("a client that dies in the middle of a line takes nobody's stack with it, and a dead keeper answers at once", async () => {
  const { child, held } = await hold();
  const [run] = Run.all(settings);
  const client = connect(run!.controlSocket);
  client.end('{"id":1,"method":"calls","ar');
  await new Promise((closed) => client.resume().once("close", closed));
  const connection = await Connection.open(run!);
  expect((await connection.call("info", held.id)).id).toBe(held.id);
  kill(held.pids.keeper);
  await connection.closed;
  expect(await connection.call("hello").catch((error: Error) => error.message)).toBe("The keeper is gone");
  kill(child.pid);
  await nothingLeft();
});
