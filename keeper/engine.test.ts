// SPDX-License-Identifier: Apache-2.0

/** What a run leaves on an engine that does not let go of it at once, or at all. */
import { afterAll, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Engine, removeBelongings } from "./engine.ts";

const folder = mkdtempSync(join(tmpdir(), "en-"));
/** How often it refuses to remove what has this name. */
let refusals: Record<string, number> = {};
let removed: string[] = [];

const server = Bun.serve({
  unix: join(folder, "engine.sock"),
  fetch(request) {
    const name = new URL(request.url).pathname.split("/").at(-1)!;
    if ((refusals[name] ?? 0) > 0) {
      refusals[name]!--;
      return Response.json({ cause: "is being used", message: `${name} is being used` }, { status: 500 });
    }
    if (name === "unknown") return Response.json({ message: "no such volume" }, { status: 404 });
    removed.push(name);
    return new Response(null, { status: 204 });
  },
});
const engine = new Engine(join(folder, "engine.sock"));

beforeEach(() => {
  refusals = {};
  removed = [];
});
afterAll(() => {
  void server.stop(true);
  rmSync(folder, { recursive: true });
});

test("what is gone already is fine, and what the engine is busy with is removed later", async () => {
  refusals = { c1: 2 };
  await removeBelongings(engine, [
    { kind: "container", name: "c1" },
    { kind: "volume", name: "unknown" },
    { kind: "network", name: "n1" },
  ]);
  expect(removed).toEqual(["c1", "n1"]);
});

test("what the engine does not let go of is named, with its reason, and keeps nothing else", async () => {
  refusals = { v1: Infinity };
  const removing = removeBelongings(
    engine,
    [
      { kind: "volume", name: "v1" },
      { kind: "secret", name: "s1" },
    ],
    50,
  );
  await expect(removing).rejects.toThrow(/remove volume v1: not within 50 ms\n.*v1 is being used/);
  expect(removed).toEqual(["s1"]);
});
