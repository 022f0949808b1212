// SPDX-License-Identifier: Apache-2.0

/** Which processes are a run's, and that no other is ever ended: an innocent one may look like one, or have its pid. */
import { afterAll, afterEach, expect, setDefaultTimeout, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually } from "../base/waiting.ts";
import { birthOf, kill, processesOf, strayRuns } from "./processes.ts";
import { Run } from "./run.ts";
import { RUN_MARK } from "./marks.ts";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

const root = mkdtempSync(join(tmpdir(), "pr-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
/** Nobody else's: processes of another run of this file must not be found here. */
const [ID, OTHER] = [randomBytes(4).toString("hex"), randomBytes(4).toString("hex")] as const;
const folder = join(root, ID);
mkdirSync(folder, { mode: 0o700 });
const run = Run.open(folder);

const started: { pid: number; birth: string }[] = [];
afterEach(() => {
  for (const each of started.splice(0)) kill(each);
});

/** A process that only waits, once its program has begun. */
async function waiting(env: Record<string, string>, argv = ["sleep", "600"]): Promise<number> {
  const { pid } = Bun.spawn(argv, {
    env: { PATH: process.env.PATH!, ...env },
    stdio: ["ignore", "ignore", "ignore"],
  });
  started.push({ pid, birth: birthOf(pid) });
  const seen = () => expect(Bun.file(`/proc/${pid}/cmdline`).text()).resolves.toStartWith(argv[0]!);
  if (process.platform === "linux") await eventually(seen, { what: "it has begun" });
  return pid;
}

const pids = () => processesOf(run).map(({ pid }) => pid);
/** A shell that stays in front of what it was given to do. */
const shell = (script: string) => ["sh", "-c", `${script}\nwait`];

test.each([
  ["another variable that ends like the mark", { [`MY_${RUN_MARK}`]: ID }],
  ["a variable that tells of the mark", { NOTE: `${RUN_MARK}=${ID}` }],
  ["a longer id", { [RUN_MARK]: `${ID}0` }],
  ["another run's mark", { [RUN_MARK]: OTHER }],
  [
    "a container's folder whose name only begins like the run's",
    { OPENSHELL_FAKE_ROOT: `${folder}-2/rootfs` },
  ],
])("a process with %s is nobody's", async (_, env) => {
  await waiting(env);
  expect(pids()).toEqual([]);
});

test("a process with the run's mark, or of a container in the run's folder, is the run's", async () => {
  const expected = [
    await waiting({ [RUN_MARK]: ID }),
    await waiting({ OPENSHELL_FAKE_ROOT: join(folder, "engine", "rootfs") }),
  ];
  expect(pids().toSorted()).toEqual(expected.toSorted());
});

test("a process that has dropped the mark is the run's as long as its parent is known", async () => {
  const pid = await waiting({ [RUN_MARK]: ID }, shell("env -i setsid sleep 600 &"));
  await eventually(() => expect(processesOf(run).map(({ command }) => command)).toContain("sleep 600"), {
    what: "the child is found",
  });
  const all = processesOf(run);
  started.push(...all);
  expect(all.map((each) => each.pid)).toContain(pid);
});

test("a real engine bears no mark, which all containers of its user would inherit, and is known by its socket", async () => {
  const pid = await waiting({}, ["sh", "-c", "while :; do sleep 1; done", `unix://${folder}/engine.sock`]);
  await waiting({}, ["sh", "-c", "while :; do sleep 1; done", `unix://${folder}x/engine.sock`]);
  expect(processesOf(run)).toMatchObject([{ pid, isEngine: true }]);
});

test("a process whose pid is another's by now is not ended", async () => {
  const pid = await waiting({});
  kill({ pid, birth: `${birthOf(pid)}0` });
  expect(birthOf(pid)).not.toBe("");
});

// Runs whose folder is gone

const stray = (id = ID) => ({ [RUN_MARK]: id, HOME: `${join(root, id)}/1/driver-home` });
/** A process whose parent has ended: what a test process starts itself is its own. */
function orphan(env: Record<string, string>): void {
  const script = "sleep 600 >&- 2>&- & echo $!";
  const said = Bun.spawnSync(["sh", "-c", script], { env: { PATH: process.env.PATH!, ...env } }).stdout;
  const pid = Number(said.toString());
  started.push({ pid, birth: birthOf(pid) });
}

test.skipIf(process.platform !== "linux")(
  "a run of this folder that has processes and no keeper is a stray, and no run of another folder is one",
  async () => {
    orphan(stray());
    orphan({ [RUN_MARK]: OTHER, HOME: join(tmpdir(), "elsewhere", OTHER, "home") });
    orphan({ [RUN_MARK]: OTHER });
    await eventually(() => expect(strayRuns(root)).toEqual([ID]), { what: "the orphan is found" });
  },
);

test("a run whose test process lives, or whose keeper or guard does, is no stray", async () => {
  await waiting(stray(OTHER));
  expect(strayRuns(root)).toEqual([]);
  orphan(stray());
  await waiting({}, ["sh", "-c", "while :; do sleep 1; done", "keep", folder]);
  expect(strayRuns(root)).toEqual([]);
});
