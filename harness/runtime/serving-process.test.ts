// SPDX-License-Identifier: Apache-2.0

/** Servers that are started by a program that stays in front of them and hands on no signal. */
import { afterAll, afterEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually } from "../base/waiting.ts";
import { mustListen } from "../base/system.ts";
import { Child } from "./process.ts";
import { birthOf } from "./processes.ts";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

const folder = mkdtempSync(join(tmpdir(), "sp-"));
const socket = join(folder, "s.sock");
const pidFile = join(folder, "pid");
const boxFile = join(folder, "box");
const server = join(folder, "server.ts");
// Its sandbox listens, too, as a supervisor does.
writeFileSync(
  server,
  `import { writeFileSync } from "node:fs";
   const box = Bun.spawn([process.execPath, "-e", "Bun.listen({ unix: '${boxFile}.sock', socket: { data() {} } })"]);
   writeFileSync("${boxFile}", String(box.pid));
   writeFileSync("${pidFile}", String(process.pid));
   Bun.listen({ unix: "${socket}", socket: { data() {} } });
   process.on("SIGTERM", () => process.exit(7));`,
);
let children: Child[] = [];

const pidIn = (file: string) => (existsSync(file) ? Number(readFileSync(file, "utf8")) : 0);
const lives = (pid: number) => pid > 0 && birthOf(pid) !== "";

afterEach(async () => {
  for (const child of children) await child.stop(100);
  children = [];
  if (lives(pidIn(boxFile))) process.kill(pidIn(boxFile), "SIGKILL");
  for (const file of [socket, pidFile, boxFile, `${boxFile}.sock`]) rmSync(file, { force: true });
});
afterAll(() => rmSync(folder, { recursive: true }));

function start(...argv: string[]): Child {
  const child = Child.start("driver", argv, { PATH: process.env.PATH! }, join(folder, "driver.log"));
  children.push(child);
  return child;
}

async function serving(...argv: string[]): Promise<Child> {
  const child = start(...argv);
  await child.ready(() => mustListen(socket), "bind its socket", 10_000);
  await eventually(() => mustListen(`${boxFile}.sock`), { what: "the sandbox" });
  return child;
}

const SHAPES: [string, string[]][] = [
  ["nothing in front", [process.execPath, server]],
  ["bun run", [process.execPath, "run", server]],
  ["a shell that waits", ["sh", "-c", '"$@" & wait $!', "sh", process.execPath, server]],
  ["a shell with more to do", ["sh", "-c", '"$@"; exit $?', "sh", process.execPath, server]],
  ["two of them", ["sh", "-c", `sh -c '"$@"; exit $?' sh "$@"; exit $?`, "sh", process.execPath, server]],
];

// Elsewhere nobody tells which process listens, and what was started is all that is known.
describe.skipIf(process.platform !== "linux").each(SHAPES)("behind %s", (_, argv) => {
  test("SIGTERM reaches the server and not its sandboxes, and its exit code is the command's", async () => {
    const child = await serving(...argv);
    expect(child.serving).toBe(pidIn(pidFile));
    expect(await child.stop(5_000)).toBe("exit code 7");
    expect(lives(pidIn(pidFile))).toBe(false);
    expect(lives(pidIn(boxFile))).toBe(true);
  });

  test("a server that was killed is gone once that is said, and what is in front of it, too", async () => {
    const child = await serving(...argv);
    child.kill("SIGKILL");
    await child.gone();
    expect(lives(pidIn(pidFile))).toBe(false);
    expect(child.alive).toBe(false);
    expect(lives(pidIn(boxFile))).toBe(true);
  });
});

test.skipIf(process.platform !== "linux")(
  "a server that outlives what is in front of it is ended with the stack",
  async () => {
    const child = await serving("sh", "-c", '"$@" & wait $!', "sh", process.execPath, server);
    process.kill(child.pid, "SIGKILL");
    await child.exited;
    expect(lives(pidIn(pidFile))).toBe(true);
    expect(await child.stop(100)).toBe("signal SIGKILL");
    expect(lives(pidIn(pidFile))).toBe(false);
  },
);

test("what never served is ended with all that it started", async () => {
  const child = start("sh", "-c", 'sleep 600 & echo $! >"$1"; wait', "sh", pidFile);
  await eventually(() => expect(pidIn(pidFile)).toBeGreaterThan(0), { what: "the background process" });
  await child.stop(1_000);
  await eventually(() => expect(lives(pidIn(pidFile))).toBe(false), { what: "its end" });
});
