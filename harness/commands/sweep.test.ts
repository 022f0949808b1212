// SPDX-License-Identifier: Apache-2.0

/** `sweep` removes what a dead run left, and nothing else, whatever it is told. */
import { ROOT } from "../base/root.ts";
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { tmpdir, userInfo } from "node:os";
import { join } from "node:path";
import { KEEPER_PID, Run } from "../runtime/run.ts";
import { RUN_MARK } from "../runtime/marks.ts";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

const HARNESS = join(ROOT, "harness.ts");
const folder = mkdtempSync(join(tmpdir(), "sw-"));
const runs = join(folder, "runs");
mkdirSync(runs, { mode: 0o700 });
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function harness(args: string[], cwd = folder, root = runs) {
  const child = Bun.spawn([process.execPath, HARNESS, ...args], {
    cwd,
    env: {
      PATH: process.env.PATH,
      HOME: process.env.HOME,
      OPENSHELL_E2E_RUN_DIR: root,
      OPENSHELL_E2E_REPORTS: join(folder, "reports"),
    },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [output, errors] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, output, errors };
}

/** A folder with a file in it. */
function made(path: string, file = "precious"): string {
  mkdirSync(path, { recursive: true, mode: 0o700 });
  writeFileSync(join(path, file), "");
  return path;
}

/** The pid of a process that has ended. */
const DEAD = String(Bun.spawnSync(["true"]).pid);

/** The folder of a run whose keeper has ended. */
function deadRun(id: string): string {
  const path = made(join(runs, id), "engine.log");
  writeFileSync(join(path, KEEPER_PID), DEAD);
  return path;
}

test.each([
  ["any folder", made(join(folder, "checkout"))],
  ["a folder that is only named like a run", made(join(folder, "0badcafe"))],
  ["a folder that only holds what a run does", made(join(folder, "like-a-run"), KEEPER_PID)],
])("%s is refused, and stays", async (_, path) => {
  const { code, errors } = await harness(["sweep", "--run", path]);
  expect(errors).toStartWith(`openshell-e2e: --run: ${path} is not the folder of a run`);
  expect(code).toBe(2);
  expect(existsSync(path)).toBe(true);
  expect(new Bun.Glob("*").scanSync(path).next().done).toBe(false);
});

test("an empty folder that is only named like a run is refused, and stays", async () => {
  const path = join(folder, "0badcafd");
  mkdirSync(path);
  expect((await harness(["sweep", "--run", path])).code).toBe(2);
  expect(existsSync(path)).toBe(true);
});

test("the folder one is in is refused, and stays", async () => {
  const path = made(join(folder, "here"));
  const { code, errors } = await harness(["sweep", "--run", "."], path);
  expect(errors).toContain("--run: . is not the folder of a run");
  expect(code).toBe(2);
  expect(existsSync(join(path, "precious"))).toBe(true);
});

test("a link to a dead run is refused, and a path where nothing is", async () => {
  const target = made(join(folder, "target", "0badcafe"), KEEPER_PID);
  const link = join(folder, "deadbeef");
  symlinkSync(target, link);
  expect((await harness(["sweep", "--run", link])).code).toBe(2);
  expect(existsSync(join(target, KEEPER_PID))).toBe(true);
  const nowhere = await harness(["sweep", "--run", join(folder, "nowhere")]);
  expect(nowhere.errors).toBe(`openshell-e2e: --run: no such folder: ${join(folder, "nowhere")}\n`);
  expect(nowhere.code).toBe(2);
});

test("a run that lives is refused, and stays", async () => {
  const path = deadRun("00000001");
  const server = createServer().listen(join(path, "keeper.sock"));
  const { code, errors } = await harness(["sweep", "--run", path]);
  expect(errors).toContain("--run: run 00000001 is alive");
  expect(code).toBe(2);
  expect(existsSync(path)).toBe(true);
  server.close();
  rmSync(path, { recursive: true });
});

test("a dead run is removed: the one that is named, and any", async () => {
  const path = deadRun("00000002");
  const { code, output } = await harness(["sweep", "--run", path]);
  expect(output).toBe("run 00000002: clean\n");
  expect(code).toBe(0);
  expect(existsSync(path)).toBe(false);
  const [dead, other] = [deadRun("00000003"), made(join(runs, "00000004"))];
  expect((await harness(["doctor"])).output).toContain(`run 00000003 is dead and left ${dead}`);
  expect((await harness(["sweep"])).output).toBe("run 00000003: clean\n");
  expect([dead, other].map((path) => existsSync(path))).toEqual([false, true]);
});

test("a run removes no folder but its own", () => {
  const path = join(folder, "00000005");
  const run = Run.open(made(path));
  rmSync(path, { recursive: true });
  const precious = made(join(folder, "theirs"));
  symlinkSync(precious, path);
  expect(() => run.remove()).toThrow("is not the folder of a run");
  expect(existsSync(join(precious, "precious"))).toBe(true);
});

test.each([
  ["half a file", '{"socket":"/tm'],
  ["no object", "null"],
  ["a command that is no list", '{"socket":"/tmp/x","command":"rm"}'],
])(
  "a dead run whose engine.json is %s is removed at once, and it is said what cannot be known",
  async (_, text) => {
    const path = deadRun("00000006");
    writeFileSync(join(path, "engine.json"), text);
    const { code, errors } = await harness(["sweep"]);
    expect(errors).toMatch(/^run 00000006: engine.json cannot be read[^\n]+openshell-e2e.run=00000006\n$/);
    expect({ code, left: existsSync(path) }).toEqual({ code: 2, left: false });
    expect(await harness(["sweep"])).toMatchObject({ code: 0, errors: "" });
  },
);

test("of a dead run whose engine is somebody else's and gone, only what finds its things there again stays", async () => {
  const path = deadRun("00000007");
  const socket = join(folder, "theirs.sock");
  writeFileSync(join(path, "engine.json"), JSON.stringify({ socket, command: [] }));
  made(join(path, "1", "pki"), "tls.key");
  const { code, errors } = await harness(["sweep"]);
  expect(errors).toContain(`start what serves ${socket}, and sweep again`);
  expect(code).toBe(2);
  expect(readdirSync(path).toSorted()).toEqual(["engine.json", KEEPER_PID]);
  rmSync(path, { recursive: true });
});

test("a dead run is removed also where its results cannot be written, and that is said", async () => {
  const path = deadRun("00000008");
  const at = Date.now();
  const scenario = {
    id: "XX-01",
    title: "XX-01",
    at,
    ms: 1,
    verdict: "pass",
    stack: 0,
    sandboxes: [],
    logs: {},
  };
  const entries = [
    { kind: "begin", at, run: "00000008", command: "", stack: {} },
    { kind: "scenario", scenario },
  ];
  writeFileSync(join(path, "records-test.jsonl"), entries.map((entry) => JSON.stringify(entry)).join("\n"));
  const file = join(folder, "no-folder");
  writeFileSync(file, "");
  const { code, errors } = await harness(["sweep", "--reports", join(file, "reports")]);
  expect(errors).toMatch(/^run 00000008: the reports are not written: [^\n]*(ENOTDIR|EEXIST)[^\n]*\n$/);
  expect({ code, left: existsSync(path) }).toEqual({ code: 2, left: false });
});

test.skipIf(process.platform !== "linux")(
  "a run is dead though its keeper's pid is another process' by now, and that one is not touched",
  async () => {
    const path = deadRun("00000009");
    const innocent = Bun.spawn(["sleep", "600"]);
    try {
      writeFileSync(join(path, KEEPER_PID), String(innocent.pid));
      const before = new Date(Date.now() - 1_000);
      utimesSync(join(path, KEEPER_PID), before, before);
      const { code, output } = await harness(["sweep"]);
      expect(output).toBe("run 00000009: clean\n");
      expect({ code, lives: innocent.exitCode === null && innocent.signalCode === null }).toEqual({
        code: 0,
        lives: true,
      });
    } finally {
      innocent.kill();
    }
  },
);

test("what a run of this folder left of processes is swept though its folder is gone", async () => {
  const id = crypto.randomUUID().slice(0, 8);
  const env = { PATH: process.env.PATH, [RUN_MARK]: id, HOME: join(runs, id, "1", "driver-home") };
  const script = "sleep 600 >&- 2>&- & echo $!";
  const pid = Bun.spawnSync(["sh", "-c", script], { env }).stdout.toString().trim();
  const { code, output } = await harness(["sweep"]);
  expect(output).toBe(`run ${id}: removed process ${pid} (sleep 600)\nrun ${id}: clean\n`);
  expect(code).toBe(0);
});

// Of another user, whom only root can make up

const NOBODY = 65_534;

/** A dead run as another user would plant it: its engine is a program that leaves a file when somebody starts it. */
function planted(root: string, id: string): { path: string; proof: string } {
  const path = made(join(root, id), KEEPER_PID);
  const [program, proof] = [join(path, "engine"), join(path, "started")];
  writeFileSync(join(path, KEEPER_PID), DEAD);
  writeFileSync(program, `#!/bin/sh\ntouch ${proof}\n`, { mode: 0o755 });
  writeFileSync(
    join(path, "engine.json"),
    JSON.stringify({ socket: `${path}/engine.sock`, command: [program] }),
  );
  writeFileSync(join(path, "up"), "");
  for (const each of [path, ...readdirSync(path).map((name) => join(path, name))])
    chownSync(each, NOBODY, NOBODY);
  return { path, proof };
}

const VERBS = [["sweep"], ["with", "--", "true"], ["up"]];

test.skipIf(userInfo().uid !== 0).each(VERBS)(
  "in another user's folder for runs, `%s` believes nothing and starts nothing",
  async (...args) => {
    const root = join(folder, `theirs-${args[0]}`);
    const { path, proof } = planted(root, "0badcafe");
    chownSync(root, NOBODY, NOBODY);
    const { code, errors } = await harness(args, folder, root);
    expect(errors).toMatch(/^openshell-e2e: The folder for runs is not safe[^\n]+owner 65534[^\n]+\n$/);
    expect(code).toBe(2);
    expect([existsSync(path), existsSync(proof)]).toEqual([true, false]);
  },
);

test.skipIf(userInfo().uid !== 0)(
  "in a folder that all may write to, as /tmp is one, other users' runs are left alone and are no stack to attach to",
  async () => {
    const root = join(folder, "everybody");
    mkdirSync(root);
    chmodSync(root, 0o1777);
    const { path, proof } = planted(root, "0badcafe");
    let visitors = 0;
    const server = createServer(() => visitors++).listen(join(path, "keeper.sock"));
    try {
      expect((await harness(["sweep"], folder, root)).output).toContain("Nothing to sweep");
      expect((await harness(["doctor"], folder, root)).output).not.toContain("0badcafe");
      const named = await harness(["sweep", "--run", path], folder, root);
      expect(named.errors).toContain("is not the folder of a run");
      expect((await harness(["with", "--", "true"], folder, root)).errors).not.toContain("0badcafe");
      expect({ visitors, started: existsSync(proof), left: readdirSync(root) }).toEqual({
        visitors: 0,
        started: false,
        left: ["0badcafe"],
      });
    } finally {
      server.close();
    }
  },
);
