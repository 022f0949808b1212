// SPDX-License-Identifier: Apache-2.0

/**
 * For tests: an engine, drivers on it, and their callers. The driver is fakes/driver.ts, or the binary that
 * OPENSHELL_DRIVER_BIN names. The engine is fakes/engine.ts, or the Podman behind DRIVER_TEST_PODMAN_SOCKET; where that
 * one's own root is a folder of this host, DRIVER_TEST_PODMAN_ROOT says which.
 */
import { cpSync, lstatSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { credentials, type ClientReadableStream, type ServiceError } from "@grpc/grpc-js";
import { until } from "../../harness/base/waiting.ts";
import { computeDriver, streaming, unary } from "../../proto/contract.ts";
import type { ComputeDriverClient } from "../../proto/v0.0/types/openshell/compute/v1/ComputeDriver.ts";
import type { DriverSandbox } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { Struct } from "../../proto/v0.0/types/google/protobuf/Struct.ts";
import type { Value } from "../../proto/v0.0/types/google/protobuf/Value.ts";
import type { WatchSandboxesEvent__Output as WatchEvent } from "../../proto/v0.0/types/openshell/compute/v1/WatchSandboxesEvent.ts";
import { DEADLINE_MS, processesBelow, startEngine, tarOf } from "../engine/lab.ts";

export const FIRST_PARTY = process.env.OPENSHELL_DRIVER_BIN ?? "";
export const REAL_ENGINE = process.env.DRIVER_TEST_PODMAN_SOCKET ?? "";
const REAL_ENGINE_ROOT = process.env.DRIVER_TEST_PODMAN_ROOT ?? "/";
export const SUBJECT = FIRST_PARTY ? "openshell-driver-podman" : "fakes/driver.ts";
export const SANDBOX_IMAGE = "localhost/driver-test/sandbox:1";
export const SUPERVISOR_IMAGE = "localhost/driver-test/supervisor:1";
export const NETWORK = `driver-test-${process.pid}`;

// The engine

export const home = mkdtempSync(join(tmpdir(), "drv-"));
const engineSocket = REAL_ENGINE || join(home, "engine.sock");
let engineProcess: Bun.Subprocess | null = null;

async function bootEngine(): Promise<void> {
  engineProcess = await startEngine(join(home, "engine"), engineSocket);
}

/** One call to the engine; the answer's text, and its JSON if it is some. */
export async function engine(
  method: string,
  path: string,
  body?: unknown,
): Promise<{ status: number; text: string }> {
  const raw = body instanceof Uint8Array;
  const response = await fetch(`http://d/v4.0.0/libpod${path}`, {
    unix: engineSocket,
    method,
    keepalive: false,
    ...(body !== undefined && {
      body: raw ? body : JSON.stringify(body),
      headers: { "content-type": raw ? "application/x-tar" : "application/json" },
    }),
    signal: AbortSignal.timeout(DEADLINE_MS),
  });
  return { status: response.status, text: await response.text() };
}

interface Container {
  Id: string;
  Name: string;
  State: { Status: string; Pid: number; StartedAt: string };
  Config: { Env: string[]; Labels: Record<string, string> };
  HostConfig: { Memory: number; CpuQuota: number };
}

export const inspect = async (name: string): Promise<Container> =>
  JSON.parse((await engine("GET", `/containers/${name}/json`)).text) as Container;

/** The host's address on the sandboxes' network. */
export async function bridgeAddress(): Promise<string | undefined> {
  const { text } = await engine("GET", `/networks/${NETWORK}/json`);
  return (JSON.parse(text) as { subnets: { gateway: string }[] }).subnets[0]?.gateway;
}

async function importImage(reference: string, tree: string): Promise<void> {
  const { status, text } = await engine("POST", `/images/import?reference=${reference}`, tarOf(tree));
  if (status !== 200) throw new Error(`import of ${reference}: ${status} ${text}`);
}

/** A supervisor that notes in the workspace that it ran, and stops when told to. */
const SUPERVISOR = `#!/bin/sh
trap 'exit 0' TERM
echo run >>"$OPENSHELL_FAKE_ROOT/sandbox/runs"
if [ -e "$OPENSHELL_FAKE_ROOT/sandbox/quit" ]; then exit 7; fi
while :; do sleep 0.02; done
`;

async function importImages(): Promise<void> {
  const [sandbox, supervisor] = [join(home, "sandbox-tree"), join(home, "supervisor-tree")];
  mkdirSync(join(sandbox, "bin"), { recursive: true });
  mkdirSync(supervisor);
  writeFileSync(join(supervisor, "openshell-sandbox"), SUPERVISOR, { mode: 0o755 });
  if (REAL_ENGINE) {
    const busybox =
      Bun.which("busybox") ?? "busybox (apt: busybox-static) is needed to make an image for Podman";
    cpSync(busybox, join(sandbox, "bin/busybox"));
    for (const applet of ["sh", "sleep", "test", "cat"]) symlinkSync("busybox", join(sandbox, "bin", applet));
  }
  await importImage(SANDBOX_IMAGE, sandbox);
  await importImage(SUPERVISOR_IMAGE, supervisor);
}

// The driver

export class Driver implements AsyncDisposable {
  constructor(
    readonly socket: string,
    readonly process: Bun.Subprocess<"ignore", "pipe", "pipe">,
    readonly client: ComputeDriverClient,
  ) {}

  async [Symbol.asyncDispose](): Promise<void> {
    this.client.close();
    this.process.kill("SIGKILL");
    await this.process.exited;
  }
}

const drivers: Driver[] = [];

function spawnDriver(
  flags: string[],
  env: Record<string, string> = {},
): Bun.Subprocess<"ignore", "pipe", "pipe"> {
  const command = FIRST_PARTY ? [FIRST_PARTY] : [process.execPath, join(import.meta.dir, "../driver.ts")];
  return Bun.spawn([...command, ...flags], {
    stdio: ["ignore", "pipe", "pipe"],
    env: { PATH: process.env.PATH ?? "", HOME: home, OPENSHELL_TELEMETRY_ENABLED: "false", ...env },
  });
}

let sockets = 0;

/** Flags of the test's driver; what is given here wins. */
export function flagsFor(given: Record<string, string> = {}): { socket: string; flags: string[] } {
  const socket = join(home, `d${++sockets}`, "driver.sock");
  const all = {
    "bind-socket": socket,
    "podman-socket": engineSocket,
    "network-name": NETWORK,
    "sandbox-image": SANDBOX_IMAGE,
    "supervisor-image": SUPERVISOR_IMAGE,
    "sandbox-image-pull-policy": "missing",
    "gateway-port": "17999",
    "stop-timeout": "1",
    // Nobody reads its log while it runs.
    "log-level": "warn",
    ...given,
  };
  return {
    socket: all["bind-socket"],
    flags: Object.entries(all).flatMap(([name, value]) => [`--${name}`, value]),
  };
}

export async function startDriver(given: Record<string, string> = {}): Promise<Driver> {
  const { socket, flags } = flagsFor(given);
  const before = lstatSync(socket, { throwIfNoEntry: false })?.birthtimeMs;
  const child = spawnDriver(flags);
  await until(`the driver's socket ${socket}`, () => {
    if (child.exitCode !== null) throw new Error(`the driver exited with ${child.exitCode}`);
    const file = lstatSync(socket, { throwIfNoEntry: false });
    return file?.isSocket() && file.birthtimeMs !== before && (file.mode & 0o777) === 0o600;
  });
  const { ComputeDriver } = computeDriver();
  const client = new ComputeDriver(`unix:${socket}`, credentials.createInsecure());
  const started = new Driver(socket, child, client);
  drivers.push(started);
  return started;
}

/** Runs a driver that is expected to end by itself. */
export async function runDriver(
  flags: string[],
  env: Record<string, string> = {},
): Promise<{ code: number; output: string }> {
  const child = spawnDriver(flags, env);
  const timer = setTimeout(() => child.kill("SIGKILL"), DEADLINE_MS);
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  clearTimeout(timer);
  return { code, output: out + err };
}

export const options = { deadlineMs: DEADLINE_MS };
export let driver: Driver;
export const call = {
  create: (sandbox: DriverSandbox | null, { client } = driver) =>
    unary(client, client.CreateSandbox, { sandbox }, options),
  validate: (sandbox: DriverSandbox | null, { client } = driver) =>
    unary(client, client.ValidateSandboxCreate, { sandbox }, options),
  get: async (id: string, { client } = driver) =>
    (await unary(client, client.GetSandbox, { sandbox_id: id }, options)).sandbox,
  list: async ({ client } = driver) => (await unary(client, client.ListSandboxes, {}, options)).sandboxes,
  stop: (id: string, { client } = driver) => unary(client, client.StopSandbox, { sandbox_id: id }, options),
  start: (id: string, { client } = driver) => unary(client, client.StartSandbox, { sandbox_id: id }, options),
  delete: async (id: string, { client } = driver) =>
    (await unary(client, client.DeleteSandbox, { sandbox_id: id }, options)).deleted,
};

/** A watcher that keeps all it is sent. */
export class Watcher implements Disposable {
  readonly events: WatchEvent[] = [];
  end: ServiceError | "end" | null = null;
  private readonly stream: ClientReadableStream<WatchEvent>;

  constructor({ client } = driver) {
    this.stream = client.WatchSandboxes({});
    void this.read();
  }

  private async read(): Promise<void> {
    try {
      for await (const event of streaming(this.stream)) this.events.push(event);
      this.end = "end";
    } catch (error) {
      this.end = error as ServiceError;
    }
  }

  /** The Ready condition's reason of each snapshot, and "Deleted". */
  story(id: string): string[] {
    return this.events.flatMap((event) => {
      if (event.deleted?.sandbox_id === id) return ["Deleted"];
      const { sandbox } = event.sandbox ?? {};
      return sandbox?.id === id ? [sandbox.status?.conditions[0]?.reason ?? "none"] : [];
    });
  }

  sees(id: string, reason: string): Promise<unknown> {
    return until(`${reason} of ${id}, seen ${this.story(id).join(", ")}`, () =>
      this.story(id).includes(reason),
    );
  }

  [Symbol.dispose](): void {
    this.stream.cancel();
  }
}

// Sandboxes

let serial = 0;

export function sandbox(changes: Partial<DriverSandbox> = {}): DriverSandbox & { id: string; name: string } {
  const name = `t${++serial}`;
  return {
    id: crypto.randomUUID(),
    name,
    workspace: "default",
    spec: { sandbox_token: "header.payload.signature", command: ["sleep", "1000"], template: {} },
    ...changes,
  } as DriverSandbox & { id: string; name: string };
}

export const containerName = ({ id, name, workspace }: DriverSandbox): string =>
  `openshell-${workspace}--${name}-${id}`;

/** What the engine holds of a sandbox. */
export async function remains(id: string): Promise<string[]> {
  const [containers, volumes, secrets] = await Promise.all([
    engine(
      "GET",
      `/containers/json?all=true&filters=${encodeURIComponent(JSON.stringify({ label: [`openshell.ai/sandbox-id=${id}`] }))}`,
    ),
    engine("GET", "/volumes/json"),
    engine("GET", "/secrets/json"),
  ]);
  return [
    ...(JSON.parse(containers.text) as { Names: string[] }[]).map(({ Names }) => `container ${Names[0]}`),
    ...(JSON.parse(volumes.text) as { Name: string }[])
      .filter(({ Name }) => Name.includes(id))
      .map(({ Name }) => `volume ${Name}`),
    ...(JSON.parse(secrets.text) as { Spec: { Name: string } }[])
      .filter(({ Spec }) => Spec.Name.includes(id))
      .map(({ Spec }) => `secret ${Spec.Name}`),
  ].map((line) => line.replace(id, "ID"));
}

/** The folder of the sandbox's workspace, on this side of an engine that lives in a tree of its own. */
export async function workspace(id: string): Promise<string> {
  const { text } = await engine("GET", `/volumes/openshell-sandbox-${id}-workspace/json`);
  return join(REAL_ENGINE_ROOT, (JSON.parse(text) as { Mountpoint: string }).Mountpoint);
}

export const struct = (fields: Record<string, unknown>): Struct => ({
  fields: Object.fromEntries(Object.entries(fields).map(([key, value]) => [key, toValue(value)])),
});

function toValue(value: unknown): Value {
  if (Array.isArray(value)) return { listValue: { values: value.map(toValue) } };
  if (typeof value === "string") return { stringValue: value };
  if (typeof value === "number") return { numberValue: value };
  if (typeof value === "boolean") return { boolValue: value };
  return value === null
    ? { nullValue: "NULL_VALUE" }
    : { structValue: struct(value as Record<string, unknown>) };
}

// Between the driver and the engine

/** Bun sends headers with the first bytes only, and an event stream may have none for long. */
async function* afterBlankLine(events: ReadableStream<Uint8Array> | null): AsyncGenerator<Uint8Array> {
  yield Buffer.from("\n");
  if (events) yield* events;
}

/** An engine that stands before the engine, and may change what it says. */
export class Tap implements Disposable {
  readonly socket = join(home, `tap${++sockets}.sock`);
  readonly calls: { method: string; path: string; body: string }[] = [];
  answer: (method: string, path: string) => Promise<Response | null> | Response | null = () => null;
  private readonly server = Bun.serve({
    unix: this.socket,
    ...({ idleTimeout: 0 } as object),
    fetch: async (request) => {
      const { pathname, search } = new URL(request.url);
      const body = await request.text();
      this.calls.push({ method: request.method, path: pathname, body });
      const instead = await this.answer(request.method, pathname);
      if (instead) return instead;
      const headers = { "content-type": request.headers.get("content-type") ?? "application/json" };
      const response = await fetch(`http://localhost${pathname}${search}`, {
        unix: engineSocket,
        keepalive: false,
        method: request.method,
        headers,
        signal: request.signal,
        ...(body && { body }),
      });
      const events = pathname.endsWith("/events") ? afterBlankLine(response.body) : response.body;
      return new Response(events, { status: response.status, headers: response.headers });
    },
  });

  [Symbol.dispose](): void {
    void this.server.stop(true);
  }
}

export const engineFailure = (message: string): Response =>
  Response.json({ cause: message, message, response: 500 }, { status: 500 });

// The whole of it

/** Starts the engine unless it is a real one, and a driver; both have the images. */
export async function openLab(): Promise<void> {
  if (!REAL_ENGINE) await bootEngine();
  await importImages();
  driver = await startDriver();
}

/** Ends all that was started. Resolves with the containers' processes that are left, and the engine's exit code. */
export async function closeLab(): Promise<{ left: string[]; code: number }> {
  for (const one of drivers) await one[Symbol.asyncDispose]();
  // An engine that is gone must not keep the rest from being taken away.
  await engine("DELETE", `/networks/${NETWORK}?force=true`).catch(() => null);
  engineProcess?.kill("SIGTERM");
  const code = (await engineProcess?.exited) ?? 0;
  const left = processesBelow(home);
  rmSync(home, { recursive: true, force: true });
  return { left, code };
}
