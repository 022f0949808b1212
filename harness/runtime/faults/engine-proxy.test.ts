// SPDX-License-Identifier: Apache-2.0

/** What the proxy does to calls, in front of an engine that counts them. */
import { afterAll, beforeAll, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually } from "../../base/waiting.ts";
import { EngineProxy } from "./engine-proxy.ts";

const folder = mkdtempSync(join(tmpdir(), "ep-"));
let seen: string[] = [];
let proxy: EngineProxy;

const engine = Bun.serve({
  unix: join(folder, "engine.sock"),
  async fetch(request) {
    const { pathname } = new URL(request.url);
    const body = await request.text();
    seen.push(`${request.method} ${pathname} ${body}`);
    if (!pathname.endsWith("/events")) return Response.json({ path: pathname, killed: false });
    const { readable, writable } = new TransformStream();
    void writable.getWriter().write(Buffer.from("begun\n"));
    return new Response(readable);
  },
});

beforeAll(async () => {
  proxy = await EngineProxy.open(join(folder, "proxy.sock"), join(folder, "engine.sock"));
});
beforeEach(() => {
  seen = [];
  proxy.calls.length = 0;
  proxy.rules = [];
});
afterAll(() => {
  proxy.close();
  void engine.stop(true);
  rmSync(folder, { recursive: true });
});

const ask = (path: string, init: BunFetchRequestInit = {}) =>
  fetch(`http://podman/v5.0.0/libpod/${path}`, {
    unix: proxy.socket,
    signal: AbortSignal.timeout(3_000),
    ...init,
  });
const status = async (path: string) => (await ask(path)).status;
/** Not `expect(…).rejects`: Bun blocks the event loop there. */
const broken = (call: Promise<unknown>) =>
  call.then(
    () => "an answer",
    () => "broken",
  );

test("without rules a call passes as it is, and is recorded by its name", async () => {
  const answer = await ask("secrets/create?name=x", { method: "POST", body: "content" });
  expect(await answer.json()).toEqual({ path: "/v5.0.0/libpod/secrets/create", killed: false });
  expect(seen).toEqual(["POST /v5.0.0/libpod/secrets/create content"]);
  expect(proxy.calls).toEqual([{ call: "POST secrets/create", at: expect.any(Number), status: 200 }]);
  expect(statSync(proxy.socket).mode & 0o777).toBe(0o600);
});

test("a call has its name also when its client names the server", async () => {
  const socket = connect(proxy.socket);
  socket.write("GET http://localhost/v5.0.0/libpod/info?x=y HTTP/1.1\r\nHost: localhost\r\n\r\n");
  await new Promise((answered) => socket.once("data", answered));
  socket.destroy();
  expect(proxy.calls.map(({ call }) => call)).toEqual(["GET info"]);
});

test("a large body passes whole", async () => {
  const body = "x".repeat(3_000_000);
  await ask("images/import", { method: "POST", body });
  expect(seen[0]?.length).toBe(body.length + "POST /v5.0.0/libpod/images/import ".length);
});

test("a failure is Podman's in form, befalls so many calls, from the one that is named, and reaches no engine", async () => {
  proxy.rules = [
    { call: "GET containers/*/json", from: 2, times: 1, fail: { status: 500, message: "no room" } },
  ];
  expect([await status("containers/a/json"), await status("containers/b/json")]).toEqual([200, 500]);
  expect(await status("containers/c/json")).toBe(200);
  expect(await status("info")).toBe(200);
  expect(seen.length).toBe(3);
  proxy.rules = [{ call: "*", fail: { status: 409, message: "no room" } }];
  expect(await (await ask("info")).json()).toEqual({ cause: "no room", message: "no room", response: 409 });
});

test("a call that hangs goes on when the rules say so", async () => {
  proxy.rules = [{ call: "GET info", hang: true }];
  const answer = ask("info");
  await proxy.asked("GET info");
  expect(await status("version")).toBe(200);
  expect(seen).toEqual(["GET /v5.0.0/libpod/version "]);
  proxy.rules = [];
  expect((await answer).status).toBe(200);
});

test("a delay holds a call up for as long as it says", async () => {
  proxy.rules = [{ call: "GET info", delayMs: 100 }];
  const started = performance.now();
  expect(await status("info")).toBe(200);
  expect(performance.now() - started).toBeGreaterThan(95);
});

test("an answer that is cut comes to no end, and the engine has done its work", async () => {
  proxy.rules = [{ call: "GET info", cut: true }];
  expect(await broken(ask("info").then((answer) => answer.text()))).toBe("broken");
  expect(seen.length).toBe(1);
});

test("a drop breaks calls that come and those that are under way", async () => {
  const events = (await ask("events")).body!.getReader();
  await events.read();
  proxy.rules = [{ call: "*", drop: true }];
  expect(await broken(events.read().then(({ done }) => done && Promise.reject(new Error("end"))))).toBe(
    "broken",
  );
  expect(await broken(ask("info"))).toBe("broken");
  proxy.rules = [];
  expect(await status("info")).toBe(200);
});

test("a stream's pieces come as they are sent", async () => {
  const events = (await ask("events")).body!.getReader();
  expect(Buffer.from((await events.read()).value!).toString()).toBe("begun\n");
  await events.cancel();
});

test("an answer can be made to lie", async () => {
  proxy.rules = [{ call: "GET info", replace: { from: `"killed":false`, to: `"killed":true` } }];
  expect(await (await ask("info")).json()).toMatchObject({ killed: true });
  const longer = { call: "GET info", replace: { from: "a", to: "ab" } };
  expect(() => (proxy.rules = [longer])).toThrow("longer");
});

test("a caller that gives up ends its call at the engine", async () => {
  const giving = new AbortController();
  const events = await ask("events", { signal: giving.signal });
  giving.abort();
  expect(await broken(events.text())).toBe("broken");
  await eventually(() => expect(engine.pendingRequests).toBe(0), { what: "the engine's call to end" });
});

test("without an engine the connection breaks", async () => {
  const lonely = await EngineProxy.open(join(folder, "lonely.sock"), join(folder, "nobody.sock"));
  expect(await broken(fetch("http://podman/info", { unix: lonely.socket }))).toBe("broken");
  lonely.close();
});

test("closed it is gone for its callers, and open again it is as before", async () => {
  const again = await EngineProxy.open(join(folder, "again.sock"), join(folder, "engine.sock"));
  const path = "http://podman/info";
  again.close();
  expect(await broken(fetch(path, { unix: again.socket }))).toBe("broken");
  await again.listen();
  expect((await fetch(path, { unix: again.socket })).status).toBe(200);
  again.close();
});

test("held calls are counted", async () => {
  proxy.rules = [{ call: "GET info", hang: true }];
  const held = ask("info");
  await eventually(() => expect(proxy.held).toBe(1), { what: "a call that is held" });
  proxy.rules = [];
  expect((await held).status).toBe(200);
  expect(proxy.held).toBe(0);
});
