// SPDX-License-Identifier: Apache-2.0

/** `sweep` removes what a dead run left, and nothing else, whatever it is told. */
import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { KEEPER_PID, Run } from "../keeper/run.ts";

const HARNESS = join(import.meta.dir, "..", "harness.ts");
const folder = mkdtempSync(join(tmpdir(), "sw-"));
const runs = join(folder, "runs");
mkdirSync(runs, { mode: 0o700 });
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function harness(args: string[], cwd = folder) {
  const child = Bun.spawn([process.execPath, HARNESS, ...args], {
    cwd,
    env: {
      PATH: process.env.PATH,
      HOME: process.env.HOME,
      OPENSHELL_E2E_RUN_DIR: runs,
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
  mkdirSync(path, { recursive: true });
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
