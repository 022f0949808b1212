// SPDX-License-Identifier: Apache-2.0

/**
 * The keeper: the process that owns the programs of a run. Its control socket is in control.ts.
 *
 * It ends them when the last connection closes, whatever the reason. If it is killed itself, its guard sweeps the run
 * (see `startKeeper`).
 */
import { copyFileSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { eventually } from "../base/waiting.ts";
import { HarnessError } from "../base/errors.ts";
import { openClient } from "../client/gateway.ts";
import type { Settings } from "../base/settings.ts";
import { unary } from "../../proto/contract.ts";
import { type Entry, now, readRecords, record, recordTo } from "../report/record.ts";
import { shareSecrets } from "../base/secrets.ts";
import { shellQuoted } from "../base/text.ts";
import { asksFor } from "../base/command.ts";
import { describeBelonging, Engine, removeBelongings } from "./engine.ts";
import type { EngineRule, Rule } from "../base/faults.ts";
import type { ProxiedCall } from "./faults/engine-proxy.ts";
import { urlPath } from "../base/machine.ts";
import { bringsEngine, checkParts, findParts, type Parts } from "./places.ts";
import { Child, cleanEnvironment, type Flood, floods } from "./process.ts";
import { compiledFake } from "./programs.ts";
import {
  birthOf,
  commandProcesses,
  describeProcess,
  kill,
  processesOf,
  type RunProcess,
} from "./processes.ts";
import { type Reported, writeReports } from "./reports.ts";
import type { Run } from "./run.ts";
import { shortCommand } from "../base/short-command.ts";
import type { Certificates } from "../client/endpoint.ts";
import type { DriverContext } from "../base/driver-context.ts";
import { type Setup, Stack, type StackInfo, type StackSpec } from "./stack.ts";
import type { Call } from "./faults/tap.ts";

const FAKE_SANDBOX_IMAGE = "localhost/openshell-e2e/sandbox:fake";
const PROBE_IMAGE = "localhost/openshell-e2e/probe";
const FAKE_SUPERVISOR_IMAGE = "localhost/openshell-e2e/supervisor:fake";

/**
 * What can be done to a gateway or a driver: `start` it and wait until it answers; `stop` it (SIGTERM) or `kill` it
 * (SIGKILL) and wait until it has ended; `terminate` it (SIGTERM), `pause` (SIGSTOP) or `continue` it (SIGCONT) without
 * waiting.
 */
export type Deed = (typeof DEEDS)[number];
export const DEEDS = ["start", "stop", "kill", "terminate", "pause", "continue"] as const;
const SIGNALS = { kill: "SIGKILL", terminate: "SIGTERM", pause: "SIGSTOP", continue: "SIGCONT" } as const;

/** How a driver process is. */
interface DriverState {
  pid: number;
  /** The process that serves: another one, if what was started stays in front of it, as `npx` does. */
  serving: number;
  /** Such as "exit code 0", once it ended. */
  ended?: string;
  command: string;
  /** The end of its log. */
  tail: string;
}

/** Owns the programs of a run. Its public methods are what can be asked over the control socket. */
export class Keeper {
  readonly #stacks = new Map<number, Stack>();
  #engineProcess: Child | undefined;
  #probe: Promise<string> | undefined;
  #nextStack = 1;
  #closing: Promise<string[]> | undefined;
  /** Stacks that are being stopped for somebody who may not wait for it: the engine outlives them. */
  readonly #stopping = new Set<Promise<string[]>>();
  /** The run's processes that were seen so far, by pid: the last that was seen with it. */
  readonly #seen = new Map<number, RunProcess>();
  /** Why something on the engine could not be told or removed. */
  readonly #unfinished = new Set<string>();
  /** When the rules of a stack's tap were last set, in milliseconds since 1970. */
  readonly #ruledAt = new Map<number, number>();
  /** The processes whose results are written down already. */
  readonly #reporters = new Set<string>();
  #reported: Reported = {};

  private constructor(readonly setup: Setup) {}

  /**
   * Finds out what stands in the four places, starts or reaches the engine, and puts the images there.
   * @throws HarnessError before anything is left running.
   */
  static async open(run: Run, settings: Settings): Promise<Keeper> {
    const parts = findParts(settings);
    const needsEngine = !bringsEngine(settings);
    const setup: Setup = {
      run,
      settings,
      parts,
      engine: undefined,
      rootless: false,
      commands: {
        gateway: parts.gateway.command,
        driver: parts.driver.command,
        checkedDriver: parts.driver.command,
      },
      sandboxImage: parts.engine.real || !needsEngine ? settings.sandboxImage : FAKE_SANDBOX_IMAGE,
      supervisorImage: parts.supervisor.real ? settings.supervisorImage : FAKE_SUPERVISOR_IMAGE,
      supervisor: "",
      probeImage: () => keeper.#importProbe(),
    };
    const keeper = new Keeper(setup);
    recordTo(run.folder, "keeper");
    shareSecrets(run.folder);
    try {
      const [checked] = await Promise.all([
        checkParts(parts, settings),
        needsEngine ? keeper.#openEngine() : undefined,
        keeper.#compileFakes(),
      ]);
      setup.parts = { ...setup.parts, gateway: checked.gateway, driver: checked.driver };
      return keeper;
    } catch (error) {
      // The folder stays until the failure has been told: the control socket is in it.
      await keeper.#stop();
      throw error;
    }
  }

  async #compileFakes(): Promise<void> {
    const { parts, commands, settings, run } = this.setup;
    const compileGateway = async () => (commands.gateway = (await compiledFake("gateway", run)).command);
    const compileDriver = async () => {
      const { command, busy } = await compiledFake("driver", run);
      commands.driver = command;
      commands.checkedDriver = busy;
    };
    await Promise.all([
      parts.gateway.real ? undefined : compileGateway(),
      parts.driver.real ? undefined : compileDriver(),
    ]);
    if (asksFor(settings.driverCmd, "supervisor"))
      this.setup.supervisor = (await compiledFake("supervisor", run)).path;
  }

  async #openEngine(): Promise<void> {
    const { run, settings, parts } = this.setup;
    const isOurs = !parts.engine.real || !settings.podmanSocket;
    const socket = isOurs ? join(run.folder, "engine.sock") : settings.podmanSocket;
    // A sweep starts it from its source: what was compiled is not kept for ever.
    run.engine = { socket, command: isOurs ? [...parts.engine.command, ...engineArguments(run, parts)] : [] };
    const [, fakeImages] = await Promise.all([
      isOurs ? this.#startEngine(socket) : undefined,
      parts.engine.real ? undefined : makeFakeImages(run),
    ]);
    const engine = (this.setup.engine = new Engine(socket));
    if (parts.engine.real) await this.#checkEngine(engine);
    await (fakeImages ? importAll(engine, fakeImages) : this.#provideImages(engine));
  }

  async #startEngine(socket: string): Promise<void> {
    const { run, parts } = this.setup;
    const program = parts.engine.real ? parts.engine.command : (await compiledFake("engine", run)).busy;
    const command = [...program, ...engineArguments(run, parts)];
    // A real one bears no mark: see `RunProcess`.
    const environment = parts.engine.real
      ? (process.env as Record<string, string>)
      : cleanEnvironment(run, join(run.folder, "engine-home"));
    const log = join(run.folder, "engine.log");
    this.#engineProcess = Child.start("engine", [...command, `unix://${urlPath(socket)}`], environment, log);
    await this.#engineProcess.ready(() => statSync(socket).isSocket(), "bind its socket", 10_000);
  }

  async #checkEngine(engine: Engine): Promise<void> {
    const { parts, settings } = this.setup;
    const { version, rootless, cgroups } = await engine.info();
    this.setup.rootless = rootless;
    const label = `podman ${version} (${rootless ? "rootless" : "rootful"})`;
    this.setup.parts = { ...parts, engine: { ...parts.engine, label } };
    if (settings.driverCmd || !parts.driver.real) return;
    const found = `found Podman ${version} with cgroup ${cgroups} on ${engine.socket}`;
    if (Number(version.split(".")[0]) < 5) {
      throw new HarnessError(
        `openshell-driver-podman needs Podman 5 or later: ${found}. Debian 13 and Ubuntu 25.04 have it`,
      );
    }
    if (cgroups !== "v2") {
      throw new HarnessError(
        `openshell-driver-podman needs cgroup v2: ${found}. Boot with systemd.unified_cgroup_hierarchy=1`,
      );
    }
  }

  /** On a real engine: the sandbox image, pulled if it must be, and the supervisor's, or the fake supervisor's. */
  async #provideImages(engine: Engine): Promise<void> {
    const { setup } = this;
    const { parts } = setup;
    const wanted = parts.supervisor.real ? [setup.sandboxImage, setup.supervisorImage] : [setup.sandboxImage];
    for (const image of wanted) {
      await engine.needImage(image).catch((error: Error) => {
        throw new HarnessError(`The image ${image} cannot be had (pull policy "missing"): ${error.message}`);
      });
    }
    const sandboxes = await engine.identify(setup.sandboxImage);
    setup.parts = { ...parts, engine: { ...parts.engine, image: sandboxes } };
    if (parts.supervisor.real) {
      const image = await engine.identify(setup.supervisorImage);
      setup.parts.supervisor = { ...parts.supervisor, image };
    } else setup.supervisorImage = await importFakeSupervisor(engine, setup.run);
  }

  #importProbe(): Promise<string> {
    return (this.#probe ??= (async () => {
      const { run } = this.setup;
      const engine = this.setup.engine!;
      const text = readFileSync(join(import.meta.dir, "probe.sh"), "utf8");
      const reference = `${PROBE_IMAGE}:${new Bun.CryptoHasher("sha256").update(text).digest("hex").slice(0, 16)}`;
      if (await engine.hasImage(reference)) return reference;
      const folder = join(run.folder, "probe-image");
      mkdirSync(folder);
      writeFileSync(join(folder, "openshell-sandbox"), text, { mode: 0o755 });
      await engine.importImage(reference, await tarOf(folder));
      return reference;
    })());
  }

  /** What stands in the four places. */
  hello() {
    const { parts, sandboxImage, supervisorImage } = this.setup;
    const stack = this.#stacks.get(1);
    return {
      parts,
      sandboxImage,
      supervisorImage,
      /** The stack that `up` keeps. */
      stack: stack?.info,
    };
  }

  /** Starts a stack; when a port was taken between choosing and binding it, with other ports, up to three times. */
  async startStack(spec: StackSpec): Promise<StackInfo> {
    for (let attempt = 1; ; attempt++) {
      if (this.#closing) throw new HarnessError("The run is ending: no stack is started any more");
      const stack = new Stack(this.#nextStack++, spec, this.setup);
      this.#stacks.set(stack.id, stack);
      try {
        return await stack.start();
      } catch (error) {
        this.#stacks.delete(stack.id);
        const isTaken = /address already in use|EADDRINUSE|os error 98/i.test((error as Error).message);
        if (!isTaken || attempt === 3) throw error;
      }
    }
  }

  /**
   * Stops a stack, unless it is stopped already, and removes what is left of it. Resolves with what its sandboxes had
   * left, a line each.
   */
  async stopStack(id: number): Promise<string[]> {
    const stack = this.#stacks.get(id);
    if (!stack) return [];
    this.#stacks.delete(id);
    const stopping = this.#stopStack(stack);
    this.#stopping.add(stopping);
    return stopping.finally(() => this.#stopping.delete(stopping));
  }

  async #stopStack(stack: Stack): Promise<string[]> {
    this.#look();
    const left = await this.#orWhyNot(stack.leftovers().then((things) => things.map(describeBelonging)));
    const unfinished = await this.#orWhyNot(stack.stop().then(() => []));
    recordCalls(stack);
    return [...new Set([...left, ...stack.notLookedFor, ...unfinished])];
  }

  /** What that resolves with, or what went wrong: an engine that is gone must not keep anything else up. */
  #orWhyNot(lines: Promise<string[]>): Promise<string[]> {
    return lines.catch((error: Error) => {
      this.#unfinished.add(error.message);
      return [error.message];
    });
  }

  /**
   * Does something to the gateway or the driver of a stack: see `Deed`. Resolves with how it is, such as "running" or
   * "exit code 0".
   */
  async control(id: number, who: "gateway" | "driver", what: Deed): Promise<string> {
    const stack = this.#stack(id);
    this.#mark(id, `${what} ${who}`);
    if (what === "start") {
      await (who === "gateway" ? stack.startGateway() : stack.startDriver());
      return "running";
    }
    const child = stack[who];
    if (!child) throw new HarnessError(`${who}: it was never started`);
    this.#look();
    if (what === "stop") return child.stop(20_000);
    child.kill(SIGNALS[what]);
    if (what === "kill") await child.gone();
    return child.ending ?? "running";
  }

  /**
   * Kills (SIGKILL) the engine that all stacks share, and starts it again.
   * @throws HarnessError when it is somebody else's service.
   */
  async restartEngine(): Promise<void> {
    const { engine } = this.setup;
    if (!this.#engineProcess || !engine)
      throw new HarnessError("The engine is somebody else's service, which is not ours to restart");
    const { socket } = engine;
    this.#engineProcess.kill("SIGKILL");
    await this.#engineProcess.exited;
    rmSync(socket, { force: true });
    await this.#startEngine(socket);
  }

  /** Starts one more driver process of a stack. Resolves with its number, at once. */
  startOtherDriver(id: number, differing: Partial<DriverContext>): Promise<number> {
    return this.#stack(id).startOtherDriver(differing);
  }

  /** How a driver process is: number 0 is the stack's own. */
  driverState(id: number, number: number): DriverState {
    const driver = this.#driver(id, number);
    const { pid, serving, ending } = driver;
    return { pid, serving, ended: ending, command: driver.argv.join(" "), tail: driver.tail() };
  }

  /** Sends a signal to a driver process. */
  signalDriver(id: number, number: number, name: NodeJS.Signals): void {
    const driver = this.#driver(id, number);
    this.#look();
    driver.kill(name);
  }

  #driver(id: number, number: number): Child {
    const { driver, otherDrivers } = this.#stack(id);
    const child = number === 0 ? driver : otherDrivers.get(number);
    if (!child) throw new HarnessError(`There is no driver ${number}`);
    return child;
  }

  /** The programs of the run that wrote more to their logs than is kept. */
  floods(): Flood[] {
    return floods();
  }

  /** Certificates in a stack's folder, of a CA of their own. */
  makeCertificates(id: number, name: string): Promise<Certificates> {
    return this.#stack(id).makeCertificates(name);
  }

  /** Notes a command that `with` runs, whose processes carry that mark. Its end is to be told, too. */
  beginCommand(mark: string): void {
    this.setup.run.noteCommand(mark);
  }

  endCommand(mark: string): void {
    this.setup.run.forgetCommand(mark);
  }

  /** Ends a command whose `with` has gone without a word: it was killed. */
  abandonCommand(mark: string): void {
    const { run } = this.setup;
    if (!run.commands.includes(mark)) return;
    commandProcesses([mark]).forEach(kill);
    run.forgetCommand(mark);
  }

  info(id: number): StackInfo {
    return this.#stack(id).info;
  }

  calls(id: number, since: number): Call[] {
    return this.#stack(id).tap?.calls(since) ?? [];
  }

  /** The number of the last call that crossed the tap. */
  lastCall(id: number): number {
    return this.#stack(id).tap?.seq ?? 0;
  }

  rules(id: number, rules: Rule[]): void {
    const { tap } = this.#stack(id);
    if (!tap) throw new HarnessError("This stack has no tap");
    for (const rule of rules) this.#mark(id, ruleMark(rule));
    tap.rules = rules;
    this.#ruledAt.set(id, now());
  }

  #mark(stack: number, what: string): void {
    record({ kind: "mark", mark: { stack, at: now(), what } });
  }

  /** Makes the proxy before a stack's engine treat calls by these rules from now on. */
  engineRules(id: number, rules: EngineRule[]): void {
    for (const { call, ...rule } of rules) this.#mark(id, `fault ${call}: ${JSON.stringify(rule)}`);
    this.#engineProxy(id).rules = rules;
  }

  /** Waits until the driver asked the engine for such a call, `count` times. */
  engineAsked(id: number, call: string, count?: number): Promise<void> {
    return this.#engineProxy(id).asked(call, count);
  }

  /** What the driver asked the engine for since a moment, in milliseconds since 1970; nothing without a proxy. */
  engineCalls(id: number, since: number): ProxiedCall[] {
    return this.#stack(id).engineProxy?.calls.filter(({ at }) => at >= since) ?? [];
  }

  #engineProxy(id: number) {
    const { engineProxy } = this.#stack(id);
    if (!engineProxy)
      throw new HarnessError("This stack has no proxy before its engine: start it with engineProxy");
    return engineProxy;
  }

  remember(id: number, sandboxId: string): void {
    this.#stack(id).remember(sandboxId);
  }

  /** Deletes those of the sandboxes that the gateway still has: whoever made them is gone. */
  async discard(id: number, sandboxIds: Set<string>): Promise<void> {
    const stack = this.#stacks.get(id);
    if (!stack?.gateway?.alive || sandboxIds.size === 0) return;
    const client = openClient(stack.info);
    const deadlineMs = 10_000;
    const { sandboxes } = await unary(
      client,
      client.ListSandboxes,
      { all_workspaces: true, limit: 1000 },
      { deadlineMs },
    );
    const orphans = sandboxes.flatMap(({ metadata }) =>
      metadata && sandboxIds.has(metadata.id) ? [metadata] : [],
    );
    const remove = ({ name, workspace }: { name: string; workspace: string }) =>
      unary(client, client.DeleteSandbox, { name, workspace }, { deadlineMs });
    await Promise.allSettled(orphans.map(remove));
    client.close();
  }

  /** What sandboxes of a stack have left on the engine, those with these ids or all; a line each. */
  async leftovers(id: number, sandboxIds?: string[]): Promise<string[]> {
    return (await this.#stack(id).leftovers(sandboxIds)).map(describeBelonging);
  }

  /** The same, and removes them. */
  async removeLeftovers(id: number, sandboxIds?: string[]): Promise<string[]> {
    const left = await this.#stack(id).leftovers(sandboxIds);
    if (this.setup.engine) await removeBelongings(this.setup.engine, left);
    return left.map(describeBelonging);
  }

  /** The sandboxes of a stack as the engine has them: state, exit code, and the last lines that each printed. */
  engineView(id: number): Promise<string[]> {
    return this.#stack(id).engineView();
  }

  #stack(id: number): Stack {
    const stack = this.#stacks.get(id);
    if (!stack) throw new HarnessError(`There is no stack ${id}`);
    return stack;
  }

  /**
   * Writes down the results of a run on a stack that stays: those that `who` recorded, and all calls since then.
   * @param since in milliseconds since 1970.
   */
  report(who: string, since: number, reports: string): Reported {
    const { run } = this.setup;
    for (const stack of this.#stacks.values()) recordCalls(stack);
    this.#reporters.add(who);
    const entries = () => [
      ...readRecords(run.folder, (name) => ["keeper", who].includes(name)),
      ...this.#standingFaults(since),
    ];
    return writeReports({ entries, reports, run, since });
  }

  /** What came of writing down the results when the run was closed. */
  reported(): Reported {
    return this.#reported;
  }

  /** The rules that were in force before, and are still. */
  #standingFaults(since: number): Entry[] {
    const before = [...this.#stacks].filter(([id]) => (this.#ruledAt.get(id) ?? Infinity) < since);
    return before.flatMap(([stack, { tap }]) =>
      (tap?.rules ?? []).map((rule) => ({
        kind: "mark" as const,
        mark: { stack, at: since, what: ruleMark(rule), standing: true as const },
      })),
    );
  }

  /** Stops everything in order and removes the run's folder. Resolves with what had to be removed by force. */
  close(): Promise<string[]> {
    return (this.#closing ??= this.#close());
  }

  async #close(): Promise<string[]> {
    const { run, settings } = this.setup;
    const left = await this.#stop();
    const lines = [...left, ...this.#unfinished];
    record({ kind: "leftovers", lines });
    this.#reported = writeReports({
      // Of a stack that was kept for others, what they have not reported themselves.
      entries: () => readRecords(run.folder, (name) => !this.#reporters.has(name)),
      reports: settings.reports,
      run,
      unlessLater: this.#reporters.size > 0,
    });
    // What is on an engine that is gone can be swept once it is back, by what the folder knows.
    if (this.#unfinished.size === 0) run.remove();
    else run.strip();
    return lines;
  }

  async #stop(): Promise<string[]> {
    const { engine } = this.setup;
    this.#look();
    const stacks = [...this.#stacks.values()];
    const left: string[] = [];
    for (const stack of stacks) {
      if (engine) left.push(...(await stack.leftovers().catch(() => [])).map(describeBelonging));
    }
    await Promise.all(stacks.map((stack) => this.#orWhyNot(stack.stop().then(() => []))));
    for (const stack of stacks) {
      recordCalls(stack);
      left.push(...stack.notLookedFor);
    }
    this.#stacks.clear();
    await Promise.allSettled(this.#stopping);
    await this.#engineProcess?.stop(2_000);
    for (const each of await this.#remaining()) {
      left.push(describeProcess(each));
      kill(each);
    }
    return left;
  }

  /** Notes the processes that programs have started: what drops the run's mark is known later by having been seen. */
  #look(): void {
    for (const each of processesOf(this.setup.run)) this.#seen.set(each.pid, each);
  }

  /** The run's processes that do not end, now that their programs have. */
  async #remaining(): Promise<RunProcess[]> {
    let left: RunProcess[] = [];
    const none = () => {
      this.#look();
      left = [...this.#seen.values()].filter(({ pid, birth }) => birthOf(pid) === birth);
      if (left.length > 0) throw new Error(left.map(describeProcess).join(", "));
    };
    await eventually(none, { what: "end the run's processes", deadlineMs: ENDING_MS }).catch(() => {});
    return left;
  }
}

/** How long a process may take to follow the program that started it, in milliseconds. */
const ENDING_MS = 500;

const ruleMark = ({ method, ...rule }: Rule): string => `fault ${method}: ${JSON.stringify(rule)}`;

/** What an engine that is ours is told, less the socket: Podman's own command line, which the fake takes too. */
function engineArguments(run: Run, parts: Parts): string[] {
  // CONTAINER_HOST, or a line in containers.conf, would make a real one the client of another.
  const how = parts.engine.real ? ["--remote=false"] : ["--root", join(run.folder, "engine")];
  return [...how, "system", "service", "--time=0"];
}

/** The images of a fake engine, by reference: an empty one for sandboxes, and one that launches the compiled supervisor. */
async function makeFakeImages(run: Run): Promise<Map<string, Blob>> {
  const { command } = await compiledFake("supervisor", run);
  const launcher = `#!/bin/sh\nexec ${command.map(shellQuoted).join(" ")} "$@"\n`;
  const folder = join(run.folder, "images");
  const [sandbox, supervisor] = [join(folder, "sandbox"), join(folder, "supervisor")];
  mkdirSync(sandbox, { recursive: true });
  mkdirSync(supervisor);
  writeFileSync(join(supervisor, "openshell-sandbox"), launcher, { mode: 0o755 });
  const [empty, launching] = await Promise.all([tarOf(sandbox), tarOf(supervisor)]);
  return new Map([
    [FAKE_SANDBOX_IMAGE, empty],
    [FAKE_SUPERVISOR_IMAGE, launching],
  ]);
}

async function importAll(engine: Engine, images: Map<string, Blob>): Promise<void> {
  await Promise.all([...images].map(([reference, tar]) => engine.importImage(reference, tar)));
}

/** Most of an image is the compiled supervisor, of some 100 MB. */
const IMAGE_BOUNDS = { deadlineMs: 60_000, mostBytes: 2 ** 30 };

async function tarOf(folder: string): Promise<Blob> {
  const tar = ["tar", "-cf", "-", "-C", folder, "."];
  const { stdout, stderr, exitCode, ending } = await shortCommand(tar, IMAGE_BOUNDS).catch((error: Error) => {
    throw new HarnessError(`tar: ${error.message} (of ${folder})`);
  });
  if (exitCode !== 0) throw new HarnessError(`tar: ${ending} (of ${folder}): ${stderr.toString().trim()}`);
  return new Blob([stdout]);
}

/**
 * Imports the compiled fake supervisor as an image. The image is kept for later runs: its tag is the digest of what it
 * was made of.
 */
async function importFakeSupervisor(engine: Engine, run: Run): Promise<string> {
  const { path, digest } = await compiledFake("supervisor", run);
  const reference = `localhost/openshell-e2e/supervisor:${digest}`;
  if (await engine.hasImage(reference)) return reference;
  const folder = join(run.folder, "supervisor-image");
  mkdirSync(folder);
  copyFileSync(path, join(folder, "openshell-sandbox"));
  await engine.importImage(reference, await tarOf(folder));
  rmSync(folder, { recursive: true });
  return reference;
}

function recordCalls({ tap, id }: Stack): void {
  if (tap) record({ kind: "calls", calls: tap.records(id) });
}
