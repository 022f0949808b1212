// SPDX-License-Identifier: Apache-2.0

/** A user of a gateway's public API: sandboxes, and commands in them. */
import { readFileSync } from "node:fs";
import { type CallError, codeName, openshell, streaming, unary } from "../../proto/contract.ts";
import { grpc, status } from "../../proto/grpc.ts";
import { raisedWindows } from "../../proto/raised-windows.ts";
import type { ExecSandboxEvent__Output } from "../../proto/v0.0/types/openshell/v1/ExecSandboxEvent.ts";
import type { OpenShellClient } from "../../proto/v0.0/types/openshell/v1/OpenShell.ts";
import type { Sandbox__Output } from "../../proto/v0.0/types/openshell/v1/Sandbox.ts";
import type { SandboxSpec } from "../../proto/v0.0/types/openshell/v1/SandboxSpec.ts";
import type { SandboxStreamEvent__Output } from "../../proto/v0.0/types/openshell/v1/SandboxStreamEvent.ts";
import type { WatchSandboxRequest } from "../../proto/v0.0/types/openshell/v1/WatchSandboxRequest.ts";
import { HarnessError } from "../base/errors.ts";
import { indent } from "../base/text.ts";
import { eventually } from "../base/waiting.ts";
import { now, record } from "../report/record.ts";
import type { Endpoint } from "./endpoint.ts";

/** The connection options of a client: over TLS, Bun needs a name where the address is a bare IP. */
export function openClient({ endpoint, tls }: Endpoint): OpenShellClient {
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
export const allCreated = new Set<string>();

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
    readonly endpoint: Endpoint,
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
