#!/usr/bin/env bun
// SPDX-License-Identifier: Apache-2.0

/**
 * Proves that an OpenShell gateway drives a standalone compute driver over a Unix socket.
 *
 *   scenario ─▶ gateway ─▶ [tap] ─▶ driver ─▶ engine ─▶ supervisor in a sandbox ─▶ gateway
 *
 * Scenarios import `scenario`, `eventually` and `startStack`; a shell runs `bun harness.ts help`.
 * Each of gateway, driver, engine and supervisor is the real program or a fake from `fakes/`, started in the same way.
 * A keeper, a process of its own, owns them: `bun test` kills its children when one test times out and cleans up
 * nothing when it is killed itself; the keeper stops everything once the last connection to it closes.
 */
// oxlint-disable-next-line import/no-unassigned-import -- it refuses to go on
import "./installed.ts";
import { test } from "bun:test";
import { accessSync, constants, existsSync, readFileSync, statSync } from "node:fs";
import { connect as connectSocket } from "node:net";
import os, { cpus, loadavg } from "node:os";
import { basename, join, relative, resolve } from "node:path";
import { parseArgs } from "node:util";
import type { ScenarioResult, Standing } from "./report/model.ts";
import { follow } from "./report/follow.ts";
import { excerpt, readLog } from "./report/log.ts";
import { readable, readableError, readableWhole } from "./report/readable.ts";
import { now, record, recordTo, waitingEntries } from "./report/record.ts";
import {
  type About,
  aboutCaller,
  leaveOut,
  recordAbandoned,
  recorded,
  recordSelection,
  recordSkip,
} from "./report/scenario.ts";
import { knowEnvironment } from "./report/secrets.ts";
import { clipped, inColour, offset, shellQuoted, widthOf } from "./report/text.ts";
import type { EngineRule } from "./keeper/engine-proxy.ts";
import {
  findKnown,
  outdated,
  type Known,
  type Parties,
  readKnown,
  scenarioIds,
  whyOf,
} from "./known-failing.ts";
import { attach, type Connection, startKeeper } from "./keeper/connection.ts";
import { driverProblem, fromHere } from "./keeper/command.ts";
import { exemptLoopback } from "./keeper/environment.ts";
import type { Deed } from "./keeper/keeper.ts";
import { watchMemory } from "./keeper/memory.ts";
import { endWithStarter } from "./keeper/parent.ts";
import { describeParts, findParts, type Parts } from "./keeper/places.ts";
import { type Reported, writeReports } from "./keeper/reports.ts";
import { floodWords } from "./keeper/process.ts";
import { newRunId, Run } from "./keeper/run.ts";
import { socketPath, socketProblem } from "./keeper/socket.ts";
import { ENDING } from "./keeper/signals.ts";
import type { StackInfo, StackSpec } from "./keeper/stack.ts";
import type { Call, Rule } from "./keeper/tap.ts";
import { type CallError, codeName, loadGrpc, openshell, streaming, unary } from "./proto/contract.ts";
import { grpc, status } from "./proto/grpc.ts";
import { withoutPreload } from "./scenarios/preloaded.ts";
import { raisedWindows } from "./proto/raised-windows.ts";
import type { ExecSandboxEvent__Output } from "./proto/v0.0/types/openshell/v1/ExecSandboxEvent.ts";
import type { OpenShellClient } from "./proto/v0.0/types/openshell/v1/OpenShell.ts";
import type { Sandbox__Output } from "./proto/v0.0/types/openshell/v1/Sandbox.ts";
import type { SandboxSpec } from "./proto/v0.0/types/openshell/v1/SandboxSpec.ts";
import type { SandboxStreamEvent__Output } from "./proto/v0.0/types/openshell/v1/SandboxStreamEvent.ts";
import type { WatchSandboxRequest } from "./proto/v0.0/types/openshell/v1/WatchSandboxRequest.ts";

export { attach, Connection, startKeeper, withKeeper } from "./keeper/connection.ts";

// Settings

/** The name under which the driver is configured: not one that a gateway build reserves for its own drivers. */
export const DRIVER_NAME = "external-podman";

export const PLACES = ["gateway", "driver", "engine", "supervisor"] as const;
/** The four places that a real program or a fake can take. */
export type Place = (typeof PLACES)[number];

type Kind =
  | "program"
  | "command"
  | "path"
  | "folder"
  | "checkout"
  | "socket"
  | "places"
  | "seconds"
  | "count"
  | "flag"
  | "text";

/** Every setting: its flag is `--name`, its field the name in camel case. A flag wins over the environment. */
// prettier-ignore
export const SETTINGS = [
  // name             environment                     kind       default  meaning
  ["gateway-bin",     "OPENSHELL_GATEWAY_BIN",        "program", "",      "the real gateway, openshell-gateway"],
  ["driver-bin",      "OPENSHELL_DRIVER_BIN",         "program", "",      "the real Podman driver, openshell-driver-podman"],
  ["driver-cmd",      "OPENSHELL_DRIVER_CMD",         "command", "",      "any driver: its command line, with placeholders such as {socket}"],
  ["driver-env",      "OPENSHELL_DRIVER_ENV",         "text",    "",      "names of environment variables, comma separated, that the driver may see"],
  ["cli-bin",         "OPENSHELL_BIN",                "program", "",      "the openshell CLI, handed on by `with`"],
  ["repo",            "OPENSHELL_REPO",               "checkout","",      "a built upstream checkout in which to find all of the above"],
  ["podman-socket",   "OPENSHELL_PODMAN_SOCKET",      "socket",  "",      "a running Podman API service to use as the engine"],
  ["sandbox-image",   "OPENSHELL_SANDBOX_IMAGE",      "text",    "",      "the image of sandboxes on a real engine"],
  ["supervisor-image","OPENSHELL_SUPERVISOR_IMAGE",   "text",    "",      "the image with the real supervisor, openshell-sandbox"],
  ["require",         "OPENSHELL_E2E_REQUIRE",        "places",  "",      "places that must be real, comma separated, else exit 2"],
  ["fake",            "OPENSHELL_E2E_FAKE",           "places",  "",      "places that must be fake, comma separated"],
  ["stop-timeout",    "OPENSHELL_E2E_STOP_TIMEOUT",   "seconds", "1",     "how long the driver lets a sandbox stop by itself, in seconds"],
  ["run-dir",         "OPENSHELL_E2E_RUN_DIR",        "folder",  "",      "where runs keep sockets and state; short, private, default in memory or the temporary folder"],
  ["reports",         "OPENSHELL_E2E_REPORTS",        "path",    "reports", "where a run leaves its results and its logs"],
  ["parallel",        "OPENSHELL_E2E_PARALLEL",       "count",   "",      "scenarios at a time; default 6, or 1 with a real gateway or engine (checks: 5, or 1)"],
  ["verbose",         "OPENSHELL_E2E_VERBOSE",        "flag",    "",      "1 shows what the programs of a test run write, as they write it"],
  ["trace",           "OPENSHELL_E2E_TRACE",          "flag",    "",      "1 shows the calls between gateway and driver, as they end"],
  ["attach",          "OPENSHELL_E2E_ATTACH",         "flag",    "1",     "`bun test` and `with` use a stack that `bun harness.ts up` keeps; 0 never does"],
] as const satisfies readonly (readonly [string, string, Kind, string, string])[];

type CamelCase<S extends string> = S extends `${infer A}-${infer B}` ? `${A}${Capitalize<CamelCase<B>>}` : S;
/** The settings of a run, each as text; empty when unset. */
export type Settings = Record<CamelCase<(typeof SETTINGS)[number][0]>, string>;

const camelCase = (name: string): string =>
  name.replace(/-(.)/g, (_, letter: string) => letter.toUpperCase());

/** Flags that a verb has beside the settings. One that is given several times is a list, a line each. */
type OwnFlags = Record<string, { type: "string" | "boolean"; short?: string; multiple?: boolean }>;

/**
 * Reads the settings from flags and environment.
 * @returns the settings, the arguments that are no flags, and what the verb's own flags say.
 * @throws HarnessError that names the setting, for an unknown flag or a value that cannot be right.
 */
export function readSettings(
  argv: string[] = [],
  env: NodeJS.ProcessEnv = process.env,
  ownFlags: OwnFlags = {},
) {
  const options = Object.fromEntries(SETTINGS.map(([name]) => [name, { type: "string" as const }]));
  let parsed;
  try {
    parsed = parseArgs({
      args: argv,
      options: { ...options, ...ownFlags },
      allowPositionals: true,
      strict: true,
      tokens: true,
    });
  } catch (error) {
    const [sentence = ""] = (error as Error).message.split(/\.\s/, 1);
    throw new HarnessError(`${clipped(sentence)}. See \`bun harness.ts help\``);
  }
  checkFlags(parsed.tokens, ownFlags);
  const settings = {} as Record<string, string>;
  for (const [name, variable, kind, fallback] of SETTINGS) {
    const flag = parsed.values[name];
    const value = (typeof flag === "string" ? flag : env[variable])?.trim() || fallback;
    const problem = value && VALUE_CHECKS[kind](value);
    if (problem) {
      const given = typeof flag === "string" ? `--${name}` : variable;
      throw new HarnessError(`${given}: ${problem}: ${clipped(value)}`);
    }
    settings[camelCase(name)] = value && settle(kind, value);
  }
  for (const [flag, place] of Object.entries(SEATS))
    if (parsed.values[flag]) refuseFaked(`--${flag}`, place, settings as Settings);
  const own = Object.keys(ownFlags).flatMap((name) => {
    const value = parsed.values[name];
    return value === undefined ? [] : [[name, value === true ? "1" : [value].flat().join("\n")] as const];
  });
  return { settings: settings as Settings, args: parsed.positionals, own: Object.fromEntries(own) };
}

/** In characters: a flag goes on to other processes, and the system takes arguments and variables of 128 KiB. */
const LONGEST_VALUE = 32_768;

/** @throws HarnessError for a flag that says nothing or too much, or that is given twice where one value counts. */
function checkFlags(
  tokens: { kind: string; name?: string; rawName?: string; value?: string | undefined }[],
  ownFlags: OwnFlags,
): void {
  const seen = new Set<string>();
  for (const { kind, name = "", rawName = "", value } of tokens) {
    if (kind !== "option") continue;
    if (value?.trim() === "") throw new HarnessError(`${rawName}: a value was expected, and it is empty`);
    if ((value?.length ?? 0) > LONGEST_VALUE)
      throw new HarnessError(
        `${rawName}: it has ${value!.length} characters, and ${LONGEST_VALUE} is the most`,
      );
    if (seen.has(name) && !ownFlags[name]?.multiple)
      throw new HarnessError(`${rawName}: it is given more than once, and one value counts`);
    seen.add(name);
  }
}

/** Settings as another process of ours reads them. */
export const asEnvironment = (settings: Settings): Record<string, string> =>
  Object.fromEntries(
    SETTINGS.map(
      ([name, variable]) => [variable, settings[camelCase(name) as keyof Settings]] as const,
    ).filter(([, value]) => value),
  );

/** What a value means wherever it is read: relative paths start from the folder in which it was given. */
function settle(kind: Kind, value: string): string {
  if (kind === "command") return fromHere(value);
  if (kind === "socket") return socketPath(value);
  return ["program", "path", "folder", "checkout"].includes(kind) ? resolve(value) : value;
}

/** A path as it is shown: from here, if it is below. */
export const shownPath = (path: string): string =>
  path.startsWith(`${process.cwd()}/`) ? relative(process.cwd(), path) : path;

/** The flags that put a real program in a place. */
const SEATS: Record<string, Place> = {
  "gateway-bin": "gateway",
  "driver-bin": "driver",
  "driver-cmd": "driver",
  "podman-socket": "engine",
  "supervisor-image": "supervisor",
};

/** @throws HarnessError when a flag names a real program for a place that is to be faked: its verdict would be the fake's. */
export function refuseFaked(flag: string, place: Place, { fake }: Settings): void {
  if (placeList(fake).includes(place))
    throw new HarnessError(
      `${flag} names a real ${place}, and OPENSHELL_E2E_FAKE puts the fake in its place: drop one`,
    );
}

const VALUE_CHECKS: Record<Kind, (value: string) => string | false> = {
  program: (path) => {
    if (!existsSync(path)) return "no such file";
    if (!statSync(path).isFile()) return "not a file";
    return !isExecutable(path) && "not executable (chmod +x)";
  },
  checkout: (path) => {
    if (!existsSync(path)) return "no such folder";
    if (!statSync(path).isDirectory()) return "not a folder";
    if (BUILT.some((program) => findBuilt(path, program))) return false;
    return (
      `none of ${BUILT.join(", ")} is in its target/release or target/debug; build them ` +
      "(cargo build -p openshell-server -p openshell-driver-podman -p openshell-cli)"
    );
  },
  command: driverProblem,
  folder: (path) => existsSync(path) && !statSync(path).isDirectory() && "not a folder",
  socket: socketProblem,
  places: (list) =>
    list.split(",").some((name) => !PLACES.includes(name.trim() as Place)) &&
    `a list over ${PLACES.join(", ")} was expected`,
  seconds: (text) => !/^\d{1,4}$/.test(text) && "a whole number of seconds was expected",
  count: (text) => !/^[1-9]\d?$/.test(text) && "a number from 1 to 99 was expected",
  flag: (text) => !/^[01]$/.test(text) && "0 or 1 was expected",
  path: () => false,
  text: () => false,
};

/** What a checkout may have built that we can use. */
const BUILT = ["openshell-gateway", "openshell-driver-podman", "openshell"] as const;

/** The path of a program that a checkout has built; empty if it has not. */
export function findBuilt(checkout: string, program: (typeof BUILT)[number]): string {
  const candidates = ["release", "debug"].map((profile) => join(checkout, "target", profile, program));
  return candidates.find((path) => existsSync(path)) ?? "";
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

export const placeList = (list: string): Place[] =>
  list
    .split(",")
    .map((name) => name.trim() as Place)
    .filter(Boolean);

// Of a test process, which has no command line of ours.
knowEnvironment(process.env.OPENSHELL_DRIVER_ENV ?? "");

// Errors and waiting

/** Exit codes: a scenario failed, the harness or the machine did (bad settings too), or something was left behind. */
export const EXIT = { ok: 0, failed: 1, error: 2, leftovers: 3 } as const;

/** What a user can act on: what was tried, expected and seen. Printed without a stack trace, exit code 2. */
export class HarnessError extends Error {
  override name = "HarnessError";
}

export const indent = (text: string, margin: string): string => text.replace(/^/gm, margin);

/** How `eventually` waits. Times are in milliseconds. */
export interface Waiting {
  what: string;
  deadlineMs?: number;
  /** Ends the wait at once: what is awaited can no longer happen. */
  failed?: () => string | undefined | Promise<string | undefined>;
}

/** How often it is asked whether a wait is in vain, in milliseconds. */
const LOOK_MS = 100;

/**
 * Tries `attempt` again until it returns without throwing, and returns what it returned.
 * @throws HarnessError with the last thing seen, once `deadlineMs` (10 s) have passed or `failed` says why; also while an
 * attempt is under way.
 */
export async function eventually<T>(attempt: () => T | Promise<T>, waiting: Waiting): Promise<T> {
  const { what, deadlineMs = 10_000, failed } = waiting;
  const started = performance.now();
  const left = () => deadlineMs - (performance.now() - started);
  let seen = "nothing: the first attempt has no end";
  const inVain = async () => {
    const verdict = await failed?.();
    const late = left() <= 0 && `not within ${Math.round(deadlineMs)} ms${overload()}`;
    if (verdict || late) throw new HarnessError(`${what}: ${verdict || late}\n  last seen: ${seen}`);
  };
  for (let pause = 2; ; pause = Math.min(pause * 1.5, LOOK_MS)) {
    const attempted = Promise.try(attempt).then(
      (result) => ({ result }),
      (error: unknown) => void (seen = error instanceof Error ? error.message : String(error)),
    );
    let ended: { result: T } | void | "open";
    while ((ended = await orAfter(Math.min(LOOK_MS, left() + 1), attempted)) === "open") await inVain();
    if (ended) return ended.result;
    await inVain();
    await Bun.sleep(Math.min(pause, left() + 1));
  }
}

/** How `until` waits. `seen` tells what to report in place of the last look, where a look returns nothing. */
type Looking = Omit<Waiting, "what"> & { seen?: () => unknown };
type Truthy<T> = Exclude<T, undefined | null | false | 0 | "">;

/**
 * Looks until it sees something, anything truthy, and resolves with that.
 * @throws HarnessError with what was seen last, or with the last error, once `deadlineMs` (20 s) have passed.
 */
export function until<Seen>(
  what: string,
  look: () => Promise<Seen> | Seen,
  { seen, deadlineMs = 20_000, failed }: Looking = {},
): Promise<Truthy<Seen>> {
  const attempt = async () => {
    const found = await look();
    if (!found) throw new Error(seen ? Bun.inspect(seen()) : "nothing yet");
    return found as Truthy<Seen>;
  };
  return eventually(attempt, { what, deadlineMs, failed });
}

/** What `work` resolves with, or "open" when that takes longer than `ms`. */
function orAfter<T>(ms: number, work: Promise<T>): Promise<T | "open"> {
  let timer: Timer;
  const open = new Promise<"open">((resolve) => (timer = setTimeout(resolve, Math.max(0, ms), "open")));
  return Promise.race([work, open]).finally(() => clearTimeout(timer));
}

/** So many processes that want a CPU, for each that there is, and deadlines say nothing of the programs. */
const OVERLOAD = 8;

/** Says of a machine that has no time for anybody that it has none; empty for any other. */
function overload([load = 0] = loadavg(), count = cpus().length): string {
  if (load < OVERLOAD * count) return "";
  return ` (the machine is overloaded: ${Math.round(load)} processes wait for its ${count} CPUs)`;
}

/** What `work` resolves with. @throws HarnessError, or what `late` returns, after `deadlineMs`. */
export async function within<T>(
  deadlineMs: number,
  what: string,
  work: Promise<T>,
  late = () => new HarnessError(`${what}: not within ${deadlineMs} ms`) as Error,
): Promise<T> {
  let timer: Timer | undefined;
  const tooLate = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(late()), deadlineMs);
  });
  try {
    return await Promise.race([work, tooLate]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Does `work`, which is to end soon once `stop` is aborted: by the first SIGINT, SIGTERM or SIGHUP (not under `nohup`). The second one ends the
 * process at once. Resolves with the exit code of `work`, or with 128 + n after a signal.
 */
export async function interruptible(work: (stop: AbortSignal) => Promise<number>): Promise<number> {
  const stop = new AbortController();
  let code: number | undefined;
  const handlers = ENDING.map((name) => {
    const end = () => {
      for (const [signal, handler] of handlers) process.off(signal, handler);
      code = 128 + os.constants.signals[name];
      console.error(
        `${name}: nothing more is begun, and what was begun is cleared away; a second one ends this at once`,
      );
      stop.abort(new HarnessError(`ended by ${name}`));
    };
    return [name, end] as const;
  });
  for (const [signal, handler] of handlers) process.on(signal, handler);
  const end = await work(stop.signal).catch((error: unknown) => {
    if (error !== stop.signal.reason) throw error;
  });
  return code ?? end ?? EXIT.error;
}

/** What `work` resolves with. @throws why `stop` was aborted, `graceMs` after that. */
export async function unless<T>(stop: AbortSignal | undefined, work: Promise<T>, graceMs = 0): Promise<T> {
  if (!stop) return work;
  const stopped = Promise.withResolvers<never>();
  let timer: Timer | undefined;
  const begin = () => (timer = setTimeout(() => stopped.reject(stop.reason), graceMs));
  if (stop.aborted) begin();
  else stop.addEventListener("abort", begin);
  try {
    return await Promise.race([work, stopped.promise]);
  } finally {
    clearTimeout(timer);
    stop.removeEventListener("abort", begin);
  }
}

// Processes and sockets

/** Whether somebody listens on a Unix socket. */
export function connectable(path: string): Promise<boolean> {
  return new Promise((done) => {
    const socket = connectSocket(path);
    const end = (listens: boolean) => {
      socket.destroy();
      done(listens);
    };
    // A reset may be told twice.
    socket.on("error", () => end(false)).once("connect", () => end(true));
  });
}

/** @throws Error that says why nobody can be asked on a Unix socket. */
export async function mustListen(path: string): Promise<void> {
  if (!existsSync(path)) throw new Error(`${path} does not exist`);
  // The file of a program that was killed stays until the next one binds.
  if (!(await connectable(path))) throw new Error(`nobody listens on ${path}`);
}

/** Whether a process exists. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

// Client

/** The connection options of a client: over TLS, Bun needs a name where the address is a bare IP. */
export function openClient({ endpoint, tls }: Pick<StackInfo, "endpoint" | "tls">): OpenShellClient {
  const address = endpoint.replace(/^https?:\/\//, "");
  const { OpenShell } = openshell();
  if (!tls) return new OpenShell(address, raisedWindows(grpc().credentials.createInsecure()));
  const [ca, key, cert] = [tls.ca, tls.key, tls.cert].map((file) => readFileSync(file));
  return new OpenShell(address, raisedWindows(grpc().credentials.createSsl(ca, key, cert)), {
    "grpc.ssl_target_name_override": "localhost",
    "grpc.default_authority": "localhost",
  });
}

/** A sandbox to create: the public spec's own fields, and those of the request. */
export interface SandboxOptions extends SandboxSpec {
  name?: string;
  workspace?: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
}

/** A main process that stays until it is told to end, in any image that has a shell. */
const IDLE = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait; done"];

const RPC_DEADLINE_MS = 15_000;
/** Stop and delete include the driver's stop timeout. */
const STOP_DEADLINE_MS = 60_000;
const READY_DEADLINE_MS = 45_000;

/** The ids of all sandboxes that this process created. */
const allCreated = new Set<string>();

/** A user of a gateway's public API. */
export class Gateway {
  /** Sandboxes that this user created and has not deleted. */
  readonly sandboxes = new Set<Sandbox>();
  /** The ids of all that this user ever created. */
  readonly created: string[] = [];
  /** The number of its stack, for reports; 0 if it has none. */
  stack = 0;
  readonly #creating = new Set<Promise<Sandbox>>();
  #over = false;
  /** Told when this user has created another one. */
  onChange = (): void => {};

  constructor(
    readonly endpoint: Pick<StackInfo, "endpoint" | "tls">,
    readonly onCreated: (sandboxId: string) => Promise<void> = async () => {},
    readonly api = openClient(endpoint),
  ) {}

  /** Asks for a sandbox; resolves once the gateway has accepted it, while it is still provisioning. */
  async createSandbox(options: SandboxOptions = {}): Promise<Sandbox> {
    // A scenario that ran out of time goes on, and must not make anything that nobody removes.
    if (this.#over) throw new HarnessError("The scenario is over: it makes no more sandboxes");
    const creating = this.#create(options);
    this.#creating.add(creating);
    return creating.finally(() => this.#creating.delete(creating));
  }

  async #create(options: SandboxOptions): Promise<Sandbox> {
    const { name = "", workspace = "", labels = {}, annotations = {}, ...spec } = options;
    const request = { name, workspace, labels, annotations, spec: { command: IDLE, ...spec } };
    const { sandbox } = await unary(this.api, this.api.CreateSandbox, request, {
      deadlineMs: STOP_DEADLINE_MS,
    });
    const created = new Sandbox(this, sandbox as Sandbox__Output);
    this.sandboxes.add(created);
    this.created.push(created.id);
    allCreated.add(created.id);
    this.onChange();
    await this.onCreated(created.id);
    return created;
  }

  /** A new sandbox that is Ready. */
  async readySandbox(options: SandboxOptions = {}): Promise<Sandbox> {
    return (await this.createSandbox(options)).ready();
  }

  /** The sandbox of that name. @throws CallError with NOT_FOUND. */
  async getSandbox(name: string, workspace = ""): Promise<Sandbox__Output> {
    const answer = await unary(
      this.api,
      this.api.GetSandbox,
      { name, workspace },
      { deadlineMs: RPC_DEADLINE_MS },
    );
    return answer.sandbox as Sandbox__Output;
  }

  /** The names of the sandboxes that a selector such as "env=dev,team=backend" chooses. */
  async listSandboxes(selector = "", workspace = ""): Promise<string[]> {
    const request = { label_selector: selector, workspace, limit: 1000 };
    const { sandboxes } = await unary(this.api, this.api.ListSandboxes, request, {
      deadlineMs: RPC_DEADLINE_MS,
    });
    return sandboxes.map(({ metadata }) => metadata?.name ?? "");
  }

  async createWorkspace(name: string): Promise<void> {
    await unary(this.api, this.api.CreateWorkspace, { name }, { deadlineMs: RPC_DEADLINE_MS });
  }

  async deleteWorkspace(name: string): Promise<boolean> {
    const { deleted } = await unary(
      this.api,
      this.api.DeleteWorkspace,
      { name },
      { deadlineMs: RPC_DEADLINE_MS },
    );
    return deleted;
  }

  async health(): Promise<{ status: string; version: string }> {
    return unary(this.api, this.api.Health, {}, { deadlineMs: RPC_DEADLINE_MS });
  }

  /** The configured drivers, by configured name, with what each says of itself. */
  async drivers() {
    const { compute_drivers: drivers } = await unary(
      this.api,
      this.api.GetGatewayInfo,
      {},
      { deadlineMs: RPC_DEADLINE_MS },
    );
    return drivers;
  }

  /** Deletes what is left of this client's sandboxes, last made first. Resolves with the errors, a line each. */
  async cleanUp(): Promise<string[]> {
    this.#over = true;
    await Promise.allSettled(this.#creating);
    const results = await Promise.allSettled(
      [...this.sandboxes].toReversed().map((sandbox) => sandbox.delete()),
    );
    return results.flatMap((result) => (result.status === "rejected" ? [String(result.reason)] : []));
  }

  close(): void {
    this.api.close();
  }
}

/** What a command in a sandbox gets. */
export interface ExecOptions {
  stdin?: string | Uint8Array;
  environment?: Record<string, string>;
  workdir?: string;
  tty?: boolean;
  cols?: number;
  rows?: number;
  /** After this many seconds the gateway ends it with exit code 124; 0 is never. */
  timeoutSeconds?: number;
  /** How long we wait for all of it, in milliseconds. */
  deadlineMs?: number;
}

/** What came of it. */
export interface ExecResult {
  stdout: string;
  stderr: string;
  exitCode: number;
  /** The same output, byte by byte. */
  bytes: { stdout: Buffer; stderr: Buffer };
}

/** A sandbox as its user holds it. */
export class Sandbox {
  #seen: Sandbox__Output | undefined;

  constructor(
    readonly gateway: Gateway,
    seen: Sandbox__Output,
  ) {
    this.seen = seen;
  }

  /** The last that was seen of it. */
  get seen(): Sandbox__Output {
    return this.#seen!;
  }

  set seen(next: Sandbox__Output) {
    const before = this.#seen && phaseOf(this.#seen);
    this.#seen = next;
    if (this.phase !== before) this.#note(this.phase);
  }

  #note(phase: string): void {
    const { id: sandbox, name, gateway } = this;
    record({ kind: "phase", phase: { stack: gateway.stack, sandbox, name, phase, at: now() } });
  }

  get id(): string {
    return this.seen.metadata?.id ?? "";
  }

  get name(): string {
    return this.seen.metadata?.name ?? "";
  }

  get workspace(): string {
    return this.seen.metadata?.workspace ?? "";
  }

  /** The phase that was last seen, without its prefix: "READY". */
  get phase(): string {
    return phaseOf(this.seen);
  }

  get #key() {
    return { name: this.name, workspace: this.workspace };
  }

  async refresh(): Promise<this> {
    this.seen = await this.gateway.getSandbox(this.name, this.workspace);
    return this;
  }

  /** Waits until it is Ready. @throws HarnessError at once when it can no longer become so. */
  async ready(deadlineMs = READY_DEADLINE_MS): Promise<this> {
    return this.reach("READY", deadlineMs);
  }

  /**
   * Waits, on the gateway's watch stream, until the sandbox is in a phase.
   * @throws HarnessError with the last conditions, at the deadline or when it is in ERROR, which is final.
   */
  async reach(phase: string, deadlineMs = READY_DEADLINE_MS): Promise<this> {
    const what = `sandbox ${this.name}: reach ${phase}`;
    const follow = async () => {
      for await (const event of this.watch({ follow_status: true }, deadlineMs)) {
        if (event.sandbox) this.seen = event.sandbox;
        if (this.phase === phase) return;
        if (this.phase === "ERROR") break;
      }
      throw new HarnessError(`${what}: it is in ${this.phase}\n${indent(this.describe(), "  ")}`);
    };
    await follow().catch((error: Error & { code?: number }) => {
      if (error.code !== status.DEADLINE_EXCEEDED) throw error;
      throw new HarnessError(`${what}: not within ${deadlineMs} ms\n${indent(this.describe(), "  ")}`);
    });
    return this;
  }

  /** The last that was seen: phase and conditions. */
  describe(): string {
    const conditions = this.seen.status?.conditions ?? [];
    const lines = conditions.map(({ type, status, reason, message }) =>
      `${type}=${status} ${reason} ${message}`.trim(),
    );
    return [`phase ${this.phase}`, ...lines].join("\n");
  }

  /** Runs a command to its end. */
  async exec(command: string[], options: ExecOptions = {}): Promise<ExecResult> {
    const { stdin = "", environment = {}, workdir = "", tty = false, cols = 0, rows = 0 } = options;
    const { timeoutSeconds = 0, deadlineMs = 30_000 } = options;
    const request = {
      sandbox_id: this.id,
      command,
      environment,
      workdir,
      tty,
      cols,
      rows,
      timeout_seconds: timeoutSeconds,
      stdin: Buffer.from(stdin as string),
    };
    const call = this.gateway.api.ExecSandbox(request, { deadline: Date.now() + deadlineMs });
    return collect(streaming(call), `exec ${JSON.stringify(command)}`);
  }

  /** Runs a command whose input and window size can change while it runs. */
  interact(command: string[], options: ExecOptions = {}): Interaction {
    const { environment = {}, workdir = "", tty = true, cols = 80, rows = 24, deadlineMs = 30_000 } = options;
    const call = this.gateway.api.ExecSandboxInteractive({ deadline: Date.now() + deadlineMs });
    call.write({ start: { sandbox_id: this.id, command, environment, workdir, tty, cols, rows } });
    return new Interaction(call, `interact ${JSON.stringify(command)}`);
  }

  async stop(): Promise<this> {
    const { api } = this.gateway;
    const { sandbox } = await unary(api, api.StopSandbox, this.#key, { deadlineMs: STOP_DEADLINE_MS });
    this.seen = sandbox ?? this.seen;
    return this;
  }

  async start(): Promise<this> {
    const { api } = this.gateway;
    const { sandbox } = await unary(api, api.StartSandbox, this.#key, { deadlineMs: STOP_DEADLINE_MS });
    this.seen = sandbox ?? this.seen;
    return this;
  }

  /** Deletes it and waits until the gateway no longer knows it. Resolves with the gateway's `deleted`. */
  async delete(): Promise<boolean> {
    const { api } = this.gateway;
    const { deleted } = await unary(api, api.DeleteSandbox, this.#key, { deadlineMs: STOP_DEADLINE_MS });
    await this.gone();
    return deleted;
  }

  /** Waits until the gateway answers NOT_FOUND for it. */
  async gone(deadlineMs = 10_000): Promise<void> {
    await eventually(
      async () => {
        const sandbox = await this.gateway.getSandbox(this.name, this.workspace).catch(notFound);
        // Another one may have taken the name meanwhile.
        if (sandbox?.metadata?.id === this.id) throw new Error(`it is in ${phaseOf(sandbox)}`);
      },
      { what: `sandbox ${this.name}: be gone`, deadlineMs },
    );
    this.gateway.sandboxes.delete(this);
    this.#note("GONE");
  }

  /** Its events, until the loop is left, the sandbox is gone, or `deadlineMs` have passed (DEADLINE_EXCEEDED). */
  watch(
    options: Omit<WatchSandboxRequest, "id">,
    deadlineMs = 30_000,
  ): AsyncGenerator<SandboxStreamEvent__Output> {
    const request = { ...options, id: this.id };
    return streaming(this.gateway.api.WatchSandbox(request, { deadline: Date.now() + deadlineMs }));
  }

  /** The messages of its last log lines. */
  async logs(lines = 0): Promise<string[]> {
    const { api } = this.gateway;
    const request = { sandbox_id: this.id, lines, workspace: this.workspace };
    const { logs } = await unary(api, api.GetSandboxLogs, request, { deadlineMs: RPC_DEADLINE_MS });
    return logs.map(({ message }) => message);
  }
}

/** The phase of a sandbox without its prefix: "READY". */
export const phaseOf = (sandbox: Sandbox__Output): string =>
  String(sandbox.status?.phase ?? "").replace("SANDBOX_PHASE_", "");

function notFound(error: CallError): undefined {
  if (error.code !== status.NOT_FOUND) throw error;
}

/**
 * The status with which a call is refused: its code's name and its message. (Not `expect(call).rejects`: Bun blocks the
 * event loop while that waits, and the answer may never be read.)
 * @throws HarnessError when the call succeeds, and the error itself when it is no status.
 */
export async function refusal(call: Promise<unknown>): Promise<{ code: string; message: string }> {
  const error = await call.then(
    () => new HarnessError("The call was to be refused, and succeeded"),
    (reason: CallError) => reason,
  );
  if (!("details" in error)) throw error;
  return { code: codeName(error.code), message: error.details };
}

/** A running interactive command. */
export class Interaction {
  readonly result: Promise<ExecResult>;
  /** All output so far. */
  output = "";

  constructor(
    readonly call: ReturnType<OpenShellClient["ExecSandboxInteractive"]>,
    what: string,
  ) {
    this.result = collect(streaming(call), what, (text) => (this.output += text));
    this.result.catch(() => {});
  }

  write(text: string): void {
    this.call.write({ stdin: Buffer.from(text) });
  }

  resize(cols: number, rows: number): void {
    this.call.write({ resize: { cols, rows } });
  }

  /** Waits until the output contains `text`. */
  async shows(text: string): Promise<void> {
    await eventually(
      () => {
        if (!this.output.includes(text)) throw new Error(JSON.stringify(this.output));
      },
      { what: `output with ${JSON.stringify(text)}` },
    );
  }
}

async function collect(
  events: AsyncIterable<ExecSandboxEvent__Output>,
  what: string,
  onOutput: (text: string) => void = () => {},
): Promise<ExecResult> {
  const stdout: Buffer[] = [];
  const stderr: Buffer[] = [];
  let exitCode: number | undefined;
  for await (const { stdout: out, stderr: err, exit } of events) {
    if (out) stdout.push(out.data as Buffer);
    if (err) stderr.push(err.data as Buffer);
    const chunk = out?.data ?? err?.data;
    if (chunk) onOutput(chunk.toString());
    if (exit) exitCode = exit.exit_code;
  }
  if (exitCode === undefined) throw new HarnessError(`${what}: the stream ended without an exit code`);
  const bytes = { stdout: Buffer.concat(stdout), stderr: Buffer.concat(stderr) };
  return { stdout: bytes.stdout.toString(), stderr: bytes.stderr.toString(), exitCode, bytes };
}

// Scenarios

/** What a deletion leaves on the engine may stay for so long, in milliseconds. */
const SETTLE_MS = 2_000;

/** What of a log a scenario may look through, in bytes. */
const LONGEST_READ = 2 ** 24;

/** A stack as a scenario holds it. */
export class RunningStack {
  readonly gateway: Gateway;
  #any: Promise<Sandbox> | undefined;

  constructor(
    readonly keeper: Connection,
    public info: StackInfo,
    api = openClient(info),
  ) {
    this.gateway = new Gateway(info, (sandboxId) => keeper.call("remember", info.id, sandboxId), api);
    this.gateway.stack = info.id;
  }

  /** The same stack for another user, whose sandboxes are a matter apart. */
  forAnother(): RunningStack {
    return new RunningStack(this.keeper, this.info, this.gateway.api);
  }

  /** The calls between gateway and driver that came after call number `since`, oldest first. */
  calls(since = 0): Promise<Call[]> {
    return this.keeper.call("calls", this.info.id, since);
  }

  lastCall(): Promise<number> {
    return this.keeper.call("lastCall", this.info.id);
  }

  /** Makes the tap treat calls by these rules from now on; without any, it passes everything on again. */
  async rules(...rules: Rule[]): Promise<void> {
    await this.keeper.call("rules", this.info.id, rules);
  }

  /** Makes the proxy before the engine treat calls by these rules from now on; the stack's spec must ask for it. */
  async engineRules(...rules: EngineRule[]): Promise<void> {
    await this.keeper.call("engineRules", this.info.id, rules);
  }

  /** Waits until the driver has asked the engine for such a call, `count` times. */
  async engineAsked(call: string, count = 1): Promise<void> {
    await this.keeper.call("engineAsked", this.info.id, call, count);
  }

  /**
   * Does something to the gateway or the driver. Resolves with how it is then, such as "running" or "exit code 0".
   * @param what see `Deed`: start, stop, kill, terminate, pause, continue.
   */
  async control(who: "gateway" | "driver", what: Deed): Promise<string> {
    const outcome = await this.keeper.call("control", this.info.id, who, what);
    this.info = await this.keeper.call("info", this.info.id);
    return outcome;
  }

  /** The log of the gateway or the driver, without colour codes; of a very long one, its beginning and its end. */
  log(who: "gateway" | "driver"): string {
    return readableWhole(readLog(this.info.logs[who], LONGEST_READ));
  }

  /** A Ready sandbox for whoever needs no more than to run commands in one. It stays until the stack's user is done. */
  anySandbox(): Promise<Sandbox> {
    return (this.#any ??= this.gateway.readySandbox());
  }

  /**
   * Deletes this user's sandboxes, and resolves with what that left behind, a line each.
   * @param settleMs how long it may stay: a driver may answer before the engine has let go of the last volume
   */
  async cleanUp(settleMs = SETTLE_MS): Promise<string[]> {
    const problems = await this.gateway.cleanUp();
    const mine = this.gateway.created;
    const empty = async () => {
      const left = await this.keeper.call("leftovers", this.info.id, mine);
      if (left.length > 0) throw new Error(left.join("\n"));
      return left;
    };
    const waiting = { what: "nothing left on the engine", deadlineMs: settleMs };
    const removed = () => this.keeper.call("removeLeftovers", this.info.id, mine);
    const unknown = (error: Error) => [error.message];
    const left = mine.length > 0 ? await eventually(empty, waiting).catch(removed).catch(unknown) : [];
    return [...problems, ...left];
  }

  /** Stops the stack. Resolves with what its sandboxes left behind, a line each. */
  async stop(settleMs?: number): Promise<string[]> {
    const left = await this.cleanUp(settleMs);
    this.gateway.close();
    return [...left, ...(await this.keeper.call("stopStack", this.info.id))];
  }

  /**
   * What happened since a moment, in milliseconds since 1970: the lines of both logs, and the calls to the engine where
   * they were seen; and its sandboxes as the engine has them now.
   */
  async excerpts(since: number): Promise<Pick<ScenarioResult, "logs" | "engine" | "engineCalls">> {
    const { logs, id } = this.info;
    const [engine, asked, floods] = await Promise.all([
      this.keeper.call("engineView", id).catch((error: Error) => [error.message]),
      this.keeper.call("engineCalls", id, since),
      this.keeper.call("floods"),
    ]);
    const lines = (who: "gateway" | "driver") => [
      ...floods.filter(({ name, stack }) => name === who && stack === id).map(floodWords),
      ...excerpt(logs[who], since, now()),
    ];
    const engineCalls = asked.map(
      ({ call, at, status }) => `${offset(at - since)}  ${shortIds(call)} → ${status ?? "no answer"}`,
    );
    return { logs: { gateway: lines("gateway"), driver: lines("driver") }, engine, engineCalls };
  }
}

/** A call to the engine with its containers' ids as Podman shows them. */
const shortIds = (call: string): string => call.replace(/[\da-f]{64}/g, (id) => id.slice(0, 12));

/** What a scenario is given. */
export interface Given {
  /** The stack that all scenarios of a run share, and its gateway. */
  stack: RunningStack;
  gateway: Gateway;
  parts: Parts;
  /** A Ready sandbox of that stack, shared by the scenarios that do no more than run commands in one. */
  anySandbox: () => Promise<Sandbox>;
  /** Starts a stack of the scenario's own. It is stopped at the scenario's end. */
  startStack: (spec?: StackSpec) => Promise<RunningStack>;
  /** The stack of that spec which all scenarios share that ask for it; it runs until the run ends. */
  sharedStack: (spec: StackSpec) => Promise<RunningStack>;
}

/** How a scenario differs from the usual one. */
export interface ScenarioOptions {
  /** Why it does not apply here; shown beside its title. */
  skip?: string | false;
  /** What its body may take, in milliseconds. */
  deadlineMs?: number;
}

interface SharedRun {
  keeper: Connection;
  stack: RunningStack;
  /** The other shared stacks, by their spec. */
  others: Map<string, Promise<RunningStack>>;
  parts: Parts;
  /** What is known to fail, and who is at work: asked only when a scenario is listed. */
  known: Known[];
  parties: () => Promise<Parties>;
}

interface SharedKeeper {
  keeper: Connection;
  parts: Parts;
  /** The stack that `up` keeps, when we are attached to it. */
  kept: StackInfo | undefined;
  own: boolean;
}

let sharedConnection: Promise<SharedKeeper> | undefined;
/** When this run began, in milliseconds since 1970. */
let beganAt = 0;
let unfollow = (): void => {};

/** Shows what the settings ask for, of the programs of a run, while it goes on. */
function followIfAsked(folder: string, { verbose, trace }: Settings): () => void {
  if (verbose !== "1" && trace !== "1") return () => {};
  const colour = inColour(process.stderr);
  const print = (line: string) => console.error(line);
  return follow(folder, { verbose: verbose === "1", trace: trace === "1", colour, print });
}
let shared: Promise<SharedRun> | undefined;

/** The run's keeper, started or attached to when the first test needs it. */
export function sharedKeeper(): Promise<SharedKeeper> {
  mustNotBeOver();
  return (sharedConnection ??= (async () => {
    const { settings } = readSettings();
    const at = now();
    const attached = await attach(settings);
    const starting = attached ?? startKeeper(Run.create(settings), settings);
    loadGrpc();
    const keeper = await starting;
    const { run } = keeper;
    const { parts, stack } = await keeper.call("hello");
    if (!process.env.OPENSHELL_E2E_ANNOUNCED) console.log(describeParts(parts));
    recordTo(run.folder, `test-${process.pid}`);
    unfollow = followIfAsked(run.folder, settings);
    record({ kind: "begin", at, run: run.id, command: commandLine(), stack: standings(parts) });
    beganAt = at;
    return { keeper, parts, kept: attached && stack, own: !attached };
  })().catch((error) => abandon(error)));
}

/** As it was typed, as far as we know. */
const commandLine = (): string =>
  process.env.OPENSHELL_E2E_COMMAND ?? ["bun", "test", ...process.argv.slice(2)].map(shellQuoted).join(" ");

/** What stands in each place, as a report has it: no path of this machine. */
export const standings = (parts: Parts): Record<Place, Standing> =>
  Object.fromEntries(
    PLACES.map((place) => {
      const { real, label, command, image } = parts[place];
      return [place, { real, label, program: basename(command[0] ?? ""), image }];
    }),
  ) as Record<Place, Standing>;

/** The stack that scenarios share, started when the first of them needs it. */
function sharedRun(): Promise<SharedRun> {
  mustNotBeOver();
  return (shared ??= (async () => {
    const { keeper, parts, kept } = await sharedKeeper();
    const info = kept ?? (await keeper.call("startStack", {}));
    const stack = new RunningStack(keeper, info);
    const known = readKnown("scenario", scenarioIds());
    let parties: Promise<Parties> | undefined;
    return {
      keeper,
      parts,
      stack,
      others: new Map(),
      known,
      parties: () => (parties ??= partiesOf(stack.gateway)),
    };
  })().catch(async (error) => abandon(error, await sharedKeeper())));
}

/** The keeper gives each program some seconds to end. */
const CLOSING_MS = 30_000;

/** Ends the run, explained, when what all scenarios share is missing: each of them would fail with the same words. */
async function abandon(error: unknown, run?: SharedKeeper): Promise<never> {
  if (!(error instanceof HarnessError)) fail(error);
  const scenario = recordAbandoned(readable(error.message));
  // With its end the keeper writes the report.
  const closing = async (keeper: Connection) => {
    await keeper.call("close");
    return keeper.call("reported");
  };
  const closed = run?.own
    ? await within(CLOSING_MS, "close the keeper", closing(run.keeper)).catch(() => undefined)
    : undefined;
  if (!scenario) fail(error);
  const { problem } = closed ?? (run ? {} : reportAlone(standings(parts())));
  const { explainOnTerminal } = await import("./report/terminal.ts");
  const { settings } = readSettings();
  console.error(`openshell-e2e: the run cannot go on: what all scenarios share did not start\n`);
  const shown = { colour: inColour(process.stderr), width: widthOf(process.stderr) };
  console.error(explainOnTerminal(scenario, [], shown));
  console.error(
    problem
      ? `\nopenshell-e2e: ${problem}`
      : `\nAll of it: bun harness.ts report ${shellQuoted(shownPath(settings.reports))} --format html`,
  );
  process.exit(EXIT.error);
}

/** Who is at work, by what gateway and driver say of themselves. */
async function partiesOf(gateway: Gateway): Promise<Parties> {
  const [{ version }, [driver]] = await Promise.all([gateway.health(), gateway.drivers()]);
  const { driver_name = "", driver_version = "" } = driver?.capabilities ?? {};
  return { gateway: { version }, driver: { name: driver_name, version: driver_version } };
}

/** Reports what this process alone recorded, where there is no keeper to do it. */
function reportAlone(stack: Record<string, Standing>): Reported {
  const { settings } = readSettings();
  record({ kind: "begin", at: performance.timeOrigin, run: newRunId(), command: commandLine(), stack });
  record({ kind: "end", at: now() });
  return writeReports({ entries: waitingEntries(), reports: settings.reports });
}

let isEnded = false;

/** Ends the process where bun goes on after the end, with --rerun-each: what is left to run has no stack, and would fail. */
function mustNotBeOver(): void {
  if (!isEnded) return;
  const loop = "for i in $(seq 20); do bun run e2e -- -t ID || break; done";
  fail(
    new HarnessError(
      `bun runs its last file again after the run's end (--rerun-each). In a loop it works: ${loop}`,
    ),
  );
}

/** How a run ended: what it left behind, a line each, and what came of its reports. */
export type Ended = Reported & { left: string[] };

/** Ends the run, if one was begun. Called once, by the preload. */
export async function endRun(): Promise<Ended> {
  isEnded = true;
  if (!sharedConnection) {
    // Tests that need no keeper are a run without leftovers: the scenarios of gateway-adapter.
    return { left: [], ...reportAlone({ gateway: standings(parts()).gateway }) };
  }
  const { keeper, own } = await sharedConnection;
  const run = await shared;
  const others = await Promise.allSettled(run?.others.values() ?? []);
  const stacks = [
    ...(run ? [run.stack] : []),
    ...others.flatMap((other) => (other.status === "fulfilled" ? [other.value] : [])),
  ];
  const left = (await Promise.all(stacks.map((stack) => stack.cleanUp()))).flat();
  for (const stack of stacks) stack.gateway.close();
  unfollow();
  for (const flood of await keeper.call("floods")) console.error(floodWords(flood));
  record({ kind: "leftovers", lines: left });
  record({ kind: "end", at: now() });
  const { reports } = readSettings().settings;
  if (own) left.push(...(await keeper.call("close")));
  const reported = own
    ? await keeper.call("reported")
    : await keeper.call("report", `test-${process.pid}`, beganAt, reports);
  keeper.close();
  return { left, ...reported };
}

let found: Parts | undefined;

/** What stands in each place, as far as settings and file system tell; for a scenario that only applies to some. */
export function parts(): Parts {
  try {
    return (found ??= findParts(readSettings().settings));
  } catch (error) {
    fail(error);
  }
}

/** Above every deadline of ours before and after a body: the first start may pull an image. Bun's own default is 5 s. */
const BEFORE_AND_AFTER_MS = 720_000;
/**
 * How many scenarios run at a time. Most of a scenario is waiting for processes, but a busy real gateway can read the
 * report of a sandbox's end after the sandbox was started again, and then takes it for failed; and a busy Podman can
 * fail to remove a container that is just ending.
 */
export function scenariosAtATime(settings: Settings): number {
  const { gateway, engine } = findParts(settings);
  return Number(settings.parallel) || (gateway.real || engine.real ? 1 : 6);
}

/**
 * A requirement with its stable id, and its proof, which may run beside others of its file. Sandboxes and stacks that
 * the body makes are removed when it ends; anything that is left after that fails the scenario.
 */
export function scenario(title: string, body: Body, options: ScenarioOptions = {}): void {
  const { skip, deadlineMs = 60_000 } = options;
  const about = aboutCaller(title, import.meta.path);
  if (skip) return skipped(about, skip);
  const run = () => inTurn(() => recorded(about, (result) => prove(body, deadlineMs, result)));
  register(title, () => test.concurrent(title, run, deadlineMs + BEFORE_AND_AFTER_MS));
}

/** The same for a scenario that looks at, or changes, what others would notice: it runs alone. */
scenario.alone = (title: string, body: Body, options: ScenarioOptions = {}): void => {
  const { skip, deadlineMs = 60_000 } = options;
  const about = aboutCaller(title, import.meta.path);
  if (skip) return skipped(about, skip);
  const run = () => recorded(about, (result) => prove(body, deadlineMs, result));
  registerAlone(title, () => test(title, run, deadlineMs + BEFORE_AND_AFTER_MS));
};

// Files as one

type Registration = () => unknown;

/** The tests of files that are being loaded as one: those of each file that run beside others, and those that do not. */
let loading: { files: Registration[][]; alone: Registration[] } | undefined;

/** Whether a test is to run. Ends the process where nothing would end the run that it begins. */
function select(title: string): boolean {
  const problem = withoutPreload();
  if (problem) fail(new HarnessError(problem));
  return recordSelection(title);
}

/** Registers a test that runs beside others: at once, or when all files are loaded. */
export function register(title: string, test: Registration): void {
  select(title);
  if (loading) loading.files.at(-1)!.push(test);
  else test();
}

/** Registers a test that runs alone: bun lets nothing run across it, so when files are loaded as one it comes last. */
export function registerAlone(title: string, test: Registration): void {
  select(title);
  if (loading) loading.alone.push(test);
  else test();
}

/**
 * Loads test files as if they were one, so that scenarios of different files run beside each other: of each file some all
 * the time, since in one they all compute and in another they all wait.
 */
export async function asOneFile(paths: string[]): Promise<void> {
  loading = { files: [], alone: [] };
  const { files, alone } = loading;
  for (const path of paths) {
    files.push([]);
    await import(path);
  }
  loading = undefined;
  const places = files.flatMap((tests) => tests.map((test, i) => ({ test, at: i / tests.length })));
  for (const { test } of places.toSorted((a, b) => a.at - b.at)) test();
  for (const test of alone) test();
}

function skipped(about: About, reason: string): void {
  const title = `${about.title} (skipped: ${reason})`;
  if (select(title)) recordSkip(about, reason);
  // Concurrent, though nothing runs: bun lets no scenario run across one that is not.
  test.concurrent.skip(title, () => {});
}

type Body = (given: Given) => Promise<void>;

/** Does each piece of work when it is its turn: `most` at a time, asked when the first one comes. */
export function turns(most: () => number): (work: () => Promise<void>) => Promise<void> {
  let atATime: number | undefined;
  let running = 0;
  const queue: (() => void)[] = [];
  return async (work) => {
    if (running >= (atATime ??= most())) await new Promise<void>((next) => queue.push(next));
    running++;
    try {
      await work();
    } finally {
      running--;
      queue.shift()?.();
    }
  };
}

/** How many scenarios that have a gateway of their own and no engine run at a time. */
export const GATEWAYS_AT_A_TIME = 8;

/** Does a test's work when it is its turn: so many run at a time as the settings say. */
export const inTurn = turns(() => scenariosAtATime(readSettings().settings));

/**
 * Proves a scenario. One that known-failing.toml lists is to fail.
 * @throws what it fails with, or HarnessError when it is listed and passes.
 */
async function prove(body: Body, deadlineMs: number, result: ScenarioResult): Promise<void> {
  const { known, parties } = await sharedRun();
  const listed = known.some(({ scenario }) => scenario === result.id);
  const entry = listed ? findKnown(known, result.id, await parties()) : undefined;
  if (!entry) return attempt(body, deadlineMs, result);
  const failure = await attempt(body, deadlineMs, result).then(
    () => undefined,
    (error: Error) => error,
  );
  const surprise = outdated(entry);
  if (!failure && surprise) throw new HarnessError(surprise);
  if (!failure) return;
  Object.assign(result, { verdict: "known", reason: `${whyOf(entry)}\n${failure.message}` });
  console.log(`(known) ${result.id}: ${whyOf(entry)}`);
}

async function attempt(body: Body, deadlineMs: number, result: ScenarioResult): Promise<void> {
  const { keeper, stack: base, others, parts: found } = await sharedRun();
  const stack = base.forAnother();
  const used = [stack];
  const own: RunningStack[] = [];
  const starting: Promise<RunningStack>[] = [];
  let over = false;
  const borrowed = new Set<string>();
  // Also while it runs: whoever kills the run leaves a report all the same.
  const note = (changed?: RunningStack) => {
    if (changed) changed.gateway.onChange = () => note();
    result.stack = (own.at(-1) ?? used.at(-1) ?? stack).info.id;
    result.sandboxes = [...[...own, ...used].flatMap(({ gateway }) => gateway.created), ...borrowed];
    record({ kind: "running", scenario: result });
  };
  note(stack);
  const start = async (spec: StackSpec) => new RunningStack(keeper, await keeper.call("startStack", spec));
  const given: Given = {
    stack,
    gateway: stack.gateway,
    parts: found,
    anySandbox: async () => {
      const sandbox = await base.anySandbox();
      borrowed.add(sandbox.id);
      note();
      return sandbox;
    },
    startStack: (spec = {}) => {
      if (over) throw new HarnessError("The scenario is over: it starts no more stacks");
      const started = start(spec);
      starting.push(started);
      return started.then((stack) => {
        own.push(stack);
        note(stack);
        return stack;
      });
    },
    sharedStack: async (spec) => {
      const key = JSON.stringify(spec);
      if (!others.has(key)) others.set(key, start(spec));
      const other = (await others.get(key)!).forAnother();
      used.push(other);
      note(other);
      return other;
    },
  };
  let failure: Error | undefined;
  try {
    await within(deadlineMs, "The scenario", body(given));
  } catch (error) {
    failure = error instanceof Error ? error : new Error(String(error));
    result.failedMs = Math.round(now() - result.at);
    const suspect = own.at(-1) ?? used.slice(1).at(-1) ?? stack;
    // What cannot be told about a failure must not take its place.
    Object.assign(result, await suspect.excerpts(result.at).catch(() => ({})));
  }
  over = true;
  await Promise.allSettled(starting);
  note();
  const left: string[] = [];
  const undo = async (lines: Promise<string[]>) =>
    void left.push(...(await lines.catch((error: Error) => [error.message])));
  // What a failed scenario leaves is no news.
  const settleMs = failure ? 0 : SETTLE_MS;
  for (const each of own.toReversed()) await undo(each.stop(settleMs));
  for (const each of used) await undo(each.cleanUp(settleMs));
  // Of a stack of its own, which is gone, nothing more can be asked.
  if (!failure && left.length > 0 && own.length === 0)
    Object.assign(result, await (used.at(-1) ?? stack).excerpts(result.at).catch(() => ({})));
  leaveOut(allCreated.difference(new Set(result.sandboxes)), result);
  if (failure) throw failure;
  if (left.length > 0) throw new HarnessError(`Left behind:\n${indent(left.join("\n"), "  ")}`);
}

// Command line

/** A verb of the command line: its arguments, and its own flags by name. Resolves with the exit code. */
export type Command = (settings: Settings, args: string[], own: Record<string, string>) => Promise<number>;

/** The verbs, and the flags that each has beside the settings. */
const VERBS: Record<string, OwnFlags> = {
  test: { t: { type: "string", short: "t" } },
  up: { fault: { type: "string", multiple: true } },
  with: {},
  doctor: {},
  sweep: { run: { type: "string" }, guard: { type: "boolean" } },
  bench: {},
  soak: {
    sandboxes: { type: "string" },
    minutes: { type: "string" },
    chaos: { type: "boolean" },
    seed: { type: "string" },
  },
  report: { format: { type: "string" }, out: { type: "string" } },
  diff: {},
  mutants: { only: { type: "string" }, each: { type: "boolean" } },
  parity: { t: { type: "string", short: "t" } },
  check: {
    driver: { type: "string" },
    socket: { type: "string" },
    only: { type: "string", multiple: true },
    list: { type: "boolean" },
    backend: { type: "string" },
    "backend-list": { type: "string" },
    "backend-kill": { type: "string" },
    "backend-remove": { type: "string" },
  },
  help: {},
  keep: {},
};

/** The verbs that take arguments which are no flags. */
const TAKES_ARGUMENTS = new Set(["test", "with", "report", "diff", "help", "keep"]);
const HELP = ["--help", "-h"];

/** Code must be so many times hotter than usual to be compiled: most verbs are over before that pays. */
const JIT_RELUCTANCE = 100;

async function main(argv: string[]): Promise<number> {
  endWithStarter();
  exemptLoopback(process.env);
  Bun.unsafe.setJITPolicy(JIT_RELUCTANCE);
  const [first = "help", ...rest] = argv;
  const verb = HELP.includes(first) ? "help" : first;
  const ownFlags = Object.hasOwn(VERBS, verb) && VERBS[verb];
  if (!ownFlags) throw new HarnessError(`Unknown verb ${clipped(verb)}. See \`bun harness.ts help\``);
  // What follows `--` is the verb's own business.
  const split = rest.indexOf("--");
  const [ours, theirs] = split < 0 ? [rest, []] : [rest.slice(0, split), rest.slice(split + 1)];
  if (verb !== "help" && ours.some((arg) => HELP.includes(arg))) return main(["help", verb]);
  const { settings, args, own } = readSettings(ours, process.env, ownFlags);
  knowEnvironment(settings.driverEnv);
  const [stray] = TAKES_ARGUMENTS.has(verb) ? [] : [...args, ...theirs];
  if (stray !== undefined)
    throw new HarnessError(
      `${verb}: unexpected ${clipped(stray) || "empty argument"}. See \`bun harness.ts help ${verb}\``,
    );
  if (verb !== "keep") watchMemory({ as: "command" });
  const { command } = (await import(`./commands/${verb}.ts`)) as { command: Command };
  return command(settings, [...args, ...theirs], own);
}

/** Ends the process as an error that a user can act on deserves; anything else is a bug and shows where it is. */
export function fail(error: unknown): never {
  const clean = readableError(error);
  if (error instanceof HarnessError) console.error(`openshell-e2e: ${clean.message}`);
  else console.error(clean);
  process.exit(EXIT.error);
}

// Not awaited here: a command imports this module, which must be complete by then.
if (import.meta.main) void main(process.argv.slice(2)).then((code) => process.exit(code), fail);
