// SPDX-License-Identifier: Apache-2.0

/** Whatever is written to a keeper's control socket, the keeper lives, says what is wrong, and serves the others. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually } from "../base/waiting.ts";
import { isAlive } from "../base/system.ts";
import { readSettings } from "../base/settings.ts";
import { type Connection, startKeeper } from "./connection.ts";
import { LONGEST_REQUEST } from "./control.ts";
import { residentMegabytes, Run } from "./run.ts";

setDefaultTimeout(30_000);

const folder = mkdtempSync(join(tmpdir(), "ct-"));
const places = "gateway,driver,engine,supervisor";
const { settings } = readSettings([], {
  OPENSHELL_E2E_RUN_DIR: join(folder, "runs"),
  OPENSHELL_E2E_REPORTS: join(folder, "reports"),
  OPENSHELL_E2E_FAKE: places,
});
const run = Run.create(settings);
let bystander: Connection;
let keeper: number;

beforeAll(async () => {
  bystander = await startKeeper(run, settings);
  await bystander.call("hello");
  keeper = Number(readFileSync(join(run.folder, "keeper.pid"), "utf8"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** The keeper is there, and has time for others. */
async function isUndisturbed(): Promise<void> {
  const asked = performance.now();
  await bystander.call("hello");
  expect(performance.now() - asked).toBeLessThan(2_000);
}

/** A connection that writes what it likes. */
class Stranger {
  readonly socket: Socket = connect(run.controlSocket);
  closed = false;
  #heard = "";

  constructor(reads = true) {
    this.socket.on("error", () => {});
    this.socket.on("close", () => (this.closed = true));
    if (reads) this.socket.on("data", (chunk: Buffer) => (this.#heard += chunk.toString()));
    else this.socket.pause();
  }

  /** The answers so far. */
  get answers(): { id: unknown; result?: unknown; error?: string }[] {
    return this.#heard
      .split("\n")
      .slice(0, -1)
      .map((line) => JSON.parse(line));
  }

  /** Waits until there are so many answers. */
  async answered(count: number) {
    const enough = () => expect(this.answers.length).toBeGreaterThanOrEqual(count);
    await eventually(enough, { what: `${count} answers` });
    return this.answers;
  }
}

const line = (method: unknown, args: unknown = [], id: unknown = 1): string =>
  `${JSON.stringify({ id, method, args })}\n`;

test("only its user can reach the control socket", () => {
  const modeOf = (path: string) => (statSync(path).mode & 0o777).toString(8);
  expect([modeOf(run.folder), modeOf(run.controlSocket)]).toEqual(["700", "600"]);
});

const EXPECTED = 'A request was expected, as in {"id":1,"method":"hello","args":[]}';

describe("is answered with an error of one line:", () => {
  const spec = { id: null, error: EXPECTED };
  const unknown = (name: string) => ({ id: 1, error: `The keeper knows no method "${name}"` });
  const badArgument = (method: string, position: number, name: string) => ({
    id: 1,
    error: `${method}: its argument ${position}, ${name}, is missing or of another kind`,
  });
  const rules = badArgument("rules", 2, "rules");

  test.concurrent.each<[string, string | Buffer, object]>([
    ["null", "null\n", spec],
    ["a number", "7\n", spec],
    ["a text", '"hello"\n', spec],
    ["an array", "[1,2]\n", spec],
    ["nothing", "\n", spec],
    ["half an object", '{"id":1,"method":"hello"\n', spec],
    ["10,000 arrays in one another", `${"[".repeat(10_000)}${"]".repeat(10_000)}\n`, spec],
    ["bytes that are no text", Buffer.from([0, 255, 254, 128, 13, 10]), spec],
    ["an HTTP request", "GET / HTTP/1.1\n", spec],
    ["an object without a method", '{"id":1,"args":[]}\n', { ...spec, id: 1 }],
    ["a method that is no text", line(["hello"]), { ...spec, id: 1 }],
    ["arguments that are no array", line("hello", { length: 1 }), { ...spec, id: 1 }],
    ["an id that is an object", line("nope", [], { toString: 1 }), { ...unknown("nope"), id: null }],
    ["a method that there is not", line("nope"), unknown("nope")],
    ["an inherited method", line("constructor"), unknown("constructor")],
    ["another inherited method", line("__proto__"), unknown("__proto__")],
    ["a static method", line("open"), unknown("open")],
    ["a private method", line("#stop"), unknown("#stop")],
    ["a property that is no method", line("setup"), unknown("setup")],
    ["a long method's name", line("x".repeat(100_000)), unknown("x".repeat(80))],
    ["no argument", line("calls"), badArgument("calls", 1, "stack")],
    ["an argument of another type", line("info", ["1"]), badArgument("info", 1, "stack")],
    ["too many", line("info", [1, 2]), { id: 1, error: "info: 1 arguments were expected, and 2 came" }],
    ["a stack that there is not", line("info", [77]), { id: 1, error: "There is no stack 77" }],
    ["an inherited deed", line("control", [1, "driver", "toString"]), badArgument("control", 3, "what")],
    ["rules that are no list", line("rules", [1, "abc"]), rules],
    ["a rule that is null", line("rules", [1, [null]]), rules],
    ["a rule of no method", line("rules", [1, [{}]]), rules],
    ["a rule that nobody knows", line("rules", [1, [{ method: "x", afterwards: 1 }]]), rules],
    ["a rule of another type", line("rules", [1, [{ method: "x", fail: 5 }]]), rules],
    ["a stack of null", line("startStack", [null]), badArgument("startStack", 1, "spec")],
    ["a stack of texts", line("startStack", [{ gatewayArgs: [1] }]), badArgument("startStack", 1, "spec")],
  ])("%s", async (_, written, expected) => {
    const stranger = new Stranger();
    stranger.socket.write(written);
    const answers = await stranger.answered(1);
    expect(answers).toEqual([expected] as typeof answers);
    // The connection is as good as before.
    stranger.socket.write(line("lastCall", [77], "again"));
    expect((await stranger.answered(2))[1]).toEqual({ id: "again", error: "There is no stack 77" });
    stranger.socket.destroy();
    await isUndisturbed();
  });
});

test("an id that repeats gets as many answers", async () => {
  const stranger = new Stranger();
  stranger.socket.write(line("hello").repeat(3));
  expect((await stranger.answered(3)).map(({ id }) => id)).toEqual([1, 1, 1]);
  stranger.socket.destroy();
});

test("a request whose end never came is none", async () => {
  const reports = join(folder, "half");
  const stranger = new Stranger();
  stranger.socket.end(line("report", ["nobody", 0, reports]).trimEnd());
  await eventually(() => expect(stranger.closed).toBe(true), { what: "the end of the connection" });
  await isUndisturbed();
  expect([stranger.answers, existsSync(reports)]).toEqual([[], false]);
});

test("a line of 100 MB ends its connection with an error, and is not kept", async () => {
  const before = residentMegabytes(keeper);
  const stranger = new Stranger();
  const piece = Buffer.alloc(2 ** 20, "x");
  for (let written = 0; written < 100; written++) stranger.socket.write(piece);
  await eventually(() => expect(stranger.closed).toBe(true), { what: "the end of the connection" });
  const error = `A request has at most ${LONGEST_REQUEST} bytes: the connection is closed`;
  expect(stranger.answers).toEqual([{ id: null, error }]);
  expect(residentMegabytes(keeper) - before).toBeLessThan(50);
  await isUndisturbed();
});

test("who asks and never reads is not read any more, and what waits for it is bounded", async () => {
  const before = residentMegabytes(keeper);
  const stranger = new Stranger(false);
  // 150,000 requests; the answers are 150 MB or more.
  const written = stranger.socket.write(line("hello").repeat(150_000));
  expect(written).toBe(false);
  for (let look = 0; look < 20; look++) await isUndisturbed();
  expect(residentMegabytes(keeper) - before).toBeLessThan(50);
  stranger.socket.destroy();
  await isUndisturbed();
});

test("500 connections at a time are served, and their end is the end of nobody else's", async () => {
  const strangers = Array.from({ length: 500 }, () => new Stranger());
  for (const { socket } of strangers) socket.write(line("lastCall", [77]));
  await Promise.all(strangers.map((stranger) => stranger.answered(1)));
  await isUndisturbed();
  for (const { socket } of strangers) socket.destroy();
  await isUndisturbed();
});

test("the last connection's end ends the keeper: of all the others none is taken for open", async () => {
  bystander.close();
  await eventually(() => expect([isAlive(keeper), existsSync(run.folder)]).toEqual([false, false]), {
    what: "the end of the keeper",
  });
});
