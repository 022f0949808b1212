// SPDX-License-Identifier: Apache-2.0

/** What users call: sandboxes and their lifecycle, exec, watch, logs, workspaces. */
import { randomUUID } from "node:crypto";
import * as grpc from "@grpc/grpc-js";
import type { CreateSandboxRequest__Output } from "../../proto/v0.0/types/openshell/v1/CreateSandboxRequest.ts";
import type { CreateSshSessionRequest__Output } from "../../proto/v0.0/types/openshell/v1/CreateSshSessionRequest.ts";
import type { CreateSshSessionResponse } from "../../proto/v0.0/types/openshell/v1/CreateSshSessionResponse.ts";
import type { CreateWorkspaceRequest__Output } from "../../proto/v0.0/types/openshell/v1/CreateWorkspaceRequest.ts";
import type { CreateWorkspaceResponse } from "../../proto/v0.0/types/openshell/v1/CreateWorkspaceResponse.ts";
import type { DeleteSandboxResponse } from "../../proto/v0.0/types/openshell/v1/DeleteSandboxResponse.ts";
import type { DeleteWorkspaceRequest__Output } from "../../proto/v0.0/types/openshell/v1/DeleteWorkspaceRequest.ts";
import type { DeleteWorkspaceResponse } from "../../proto/v0.0/types/openshell/v1/DeleteWorkspaceResponse.ts";
import type { ExecSandboxEvent } from "../../proto/v0.0/types/openshell/v1/ExecSandboxEvent.ts";
import type { ExecSandboxInput__Output } from "../../proto/v0.0/types/openshell/v1/ExecSandboxInput.ts";
import type { ExecSandboxRequest__Output } from "../../proto/v0.0/types/openshell/v1/ExecSandboxRequest.ts";
import type { GetGatewayInfoResponse } from "../../proto/v0.0/types/openshell/v1/GetGatewayInfoResponse.ts";
import type { GetSandboxLogsRequest__Output } from "../../proto/v0.0/types/openshell/v1/GetSandboxLogsRequest.ts";
import type { GetSandboxLogsResponse } from "../../proto/v0.0/types/openshell/v1/GetSandboxLogsResponse.ts";
import type { GetWorkspaceRequest__Output } from "../../proto/v0.0/types/openshell/v1/GetWorkspaceRequest.ts";
import type { GetWorkspaceResponse } from "../../proto/v0.0/types/openshell/v1/GetWorkspaceResponse.ts";
import type { HealthResponse } from "../../proto/v0.0/types/openshell/v1/HealthResponse.ts";
import type { ListSandboxesRequest__Output } from "../../proto/v0.0/types/openshell/v1/ListSandboxesRequest.ts";
import type { ListSandboxesResponse } from "../../proto/v0.0/types/openshell/v1/ListSandboxesResponse.ts";
import type { ListWorkspacesRequest__Output } from "../../proto/v0.0/types/openshell/v1/ListWorkspacesRequest.ts";
import type { ListWorkspacesResponse } from "../../proto/v0.0/types/openshell/v1/ListWorkspacesResponse.ts";
import type { RevokeSshSessionRequest__Output } from "../../proto/v0.0/types/openshell/v1/RevokeSshSessionRequest.ts";
import type { RevokeSshSessionResponse } from "../../proto/v0.0/types/openshell/v1/RevokeSshSessionResponse.ts";
import type { Sandbox__Output } from "../../proto/v0.0/types/openshell/v1/Sandbox.ts";
import type { SandboxLogLine__Output } from "../../proto/v0.0/types/openshell/v1/SandboxLogLine.ts";
import type { SandboxResponse } from "../../proto/v0.0/types/openshell/v1/SandboxResponse.ts";
import type { SandboxSpec__Output } from "../../proto/v0.0/types/openshell/v1/SandboxSpec.ts";
import type { SandboxStreamEvent } from "../../proto/v0.0/types/openshell/v1/SandboxStreamEvent.ts";
import type { WatchSandboxRequest__Output } from "../../proto/v0.0/types/openshell/v1/WatchSandboxRequest.ts";
import type { Logger } from "../log.ts";
import { invalid, notFound, precondition, Status } from "../status.ts";
import type { Tokens } from "./auth.ts";
import type { Caller, Compute } from "./compute.ts";
import type { RemoteDriver } from "./driver.ts";
import { execute, ssh } from "./exec.ts";
import type { Feeds } from "./feeds.ts";
import { generateName } from "./names.ts";
import { phaseOf, setPhase } from "./phases.ts";
import { items, type Sessions } from "./sessions.ts";
import type { ForwardCall, SshSessions } from "./ssh-sessions.ts";
import { NameTaken, newWorkspace, type Store } from "./store.ts";
import * as validation from "./validation.ts";

const DEFAULT_PAGE = 100;
const MAX_PAGE = 1000;
const DEFAULT_LOG_LINES = 2000;
const DEFAULT_WATCH_LINES = 200;
const SESSION_WAIT_MS = 15_000;
const DEFAULT_COMMAND = ["/bin/bash", "-l"];

interface Named {
  name: string;
  workspace: string;
}

export interface UserApiParts {
  version: string;
  tokens: Tokens | undefined;
  driver: RemoteDriver;
  store: Store;
  feeds: Feeds;
  sessions: Sessions;
  sshSessions: SshSessions;
  compute: Compute;
  log: Logger;
}

export class UserApi {
  constructor(private readonly parts: UserApiParts) {}

  // The gateway

  health(): HealthResponse {
    return { status: "SERVICE_STATUS_HEALTHY", version: this.parts.version };
  }

  gatewayInfo(): GetGatewayInfoResponse {
    const { name, capabilities } = this.parts.driver;
    const { driver_name, driver_version } = capabilities;
    return {
      status: "SERVICE_STATUS_HEALTHY",
      gateway_version: this.parts.version,
      compute_drivers: [{ name, capabilities: { driver_name, driver_version } }],
    };
  }

  // Sandboxes

  async createSandbox(request: CreateSandboxRequest__Output): Promise<SandboxResponse> {
    const { compute, driver, tokens, log } = this.parts;
    if (!request.spec) throw invalid("spec is required");
    const spec = withDefaultCommand(request.spec);
    validation.validateSpec(request.name, spec);
    validation.validateLabels(request.labels);
    validation.validateAnnotations(request.annotations);
    const workspace = this.#workspace(request.workspace, "active");
    for (const provider of spec.providers) throw precondition(`provider '${provider}' not found`);

    const template = spec.template ?? EMPTY_TEMPLATE;
    const image = template.image || driver.capabilities.default_image;
    const id = randomUUID();
    const name = request.name || generateName();
    const sandbox: Sandbox__Output = {
      metadata: {
        id,
        name,
        workspace,
        created_at_ms: String(Date.now()),
        labels: request.labels,
        annotations: request.annotations,
        resource_version: "0",
        deletion_timestamp_ms: "0",
      },
      spec: { ...spec, template: { ...template, image } },
      status: null,
    };
    setPhase(sandbox, "Provisioning");
    try {
      await compute.validate(sandbox);
    } catch (error) {
      log.warn("Rejecting sandbox create request", { error: String(error) });
      throw error;
    }
    const token = tokens?.mint(id).token ?? "";
    if (token) log.info("minted sandbox JWT", { sandbox_id: id });
    void ssh();
    const created = await compute.create(sandbox, token);
    log.info("CreateSandbox request completed successfully", { sandbox_id: id, sandbox_name: name });
    return { sandbox: created };
  }

  getSandbox(request: Named): SandboxResponse {
    const [workspace, name] = this.#address(request);
    const sandbox = this.parts.store.sandboxes.byName(workspace, name);
    if (!sandbox) throw notFound("sandbox not found");
    return { sandbox };
  }

  listSandboxes(request: ListSandboxesRequest__Output): ListSandboxesResponse {
    if (request.all_workspaces && request.workspace) {
      throw invalid("all_workspaces and workspace are mutually exclusive");
    }
    const workspace = request.all_workspaces ? undefined : this.#workspace(request.workspace);
    validation.validateLabelSelector(request.label_selector);
    return { sandboxes: this.parts.store.sandboxes.list({ workspace, ...page(request) }) };
  }

  async stopSandbox(request: Named, caller: Caller): Promise<SandboxResponse> {
    return { sandbox: await this.parts.compute.stop(caller, ...this.#address(request)) };
  }

  async startSandbox(request: Named, caller: Caller): Promise<SandboxResponse> {
    return { sandbox: await this.parts.compute.start(caller, ...this.#address(request)) };
  }

  async deleteSandbox(request: Named, caller: Caller): Promise<DeleteSandboxResponse> {
    return { deleted: await this.parts.compute.delete(caller, ...this.#address(request)) };
  }

  // Exec

  async exec(call: grpc.ServerWritableStream<ExecSandboxRequest__Output, ExecSandboxEvent>): Promise<void> {
    await this.#exec(call, call.request);
  }

  async execInteractive(
    call: grpc.ServerDuplexStream<ExecSandboxInput__Output, ExecSandboxEvent>,
  ): Promise<void> {
    const input = items(call);
    const first = await input.next();
    if (first.done) throw invalid("empty stream: expected start message");
    if (!first.value.start) throw invalid("first message must be a start payload");
    await this.#exec(call, first.value.start, input);
  }

  async #exec(
    call:
      | grpc.ServerWritableStream<ExecSandboxRequest__Output, ExecSandboxEvent>
      | grpc.ServerDuplexStream<ExecSandboxInput__Output, ExecSandboxEvent>,
    request: ExecSandboxRequest__Output,
    input?: AsyncIterable<ExecSandboxInput__Output>,
  ): Promise<void> {
    validation.validateExec(request);
    if (phaseOf(this.#byId(request.sandbox_id)) !== "Ready") throw precondition("sandbox is not ready");
    const relay = await this.parts.sessions.openRelay(request.sandbox_id, SESSION_WAIT_MS);
    const names = { sandbox_id: request.sandbox_id, command_len: request.command.join(" ").length };
    this.parts.log.info(`ExecSandbox${input ? "Interactive" : ""} (relay): command started`, names);
    const emit = (event: ExecSandboxEvent) => !call.cancelled && (call.write(event), true);
    await execute({ relay, request, input, emit });
  }

  // Users' own SSH clients

  createSshSession({ sandbox_id }: CreateSshSessionRequest__Output): CreateSshSessionResponse {
    if (sandbox_id === "") throw invalid("sandbox_id is required");
    return this.parts.sshSessions.create(this.#byId(sandbox_id));
  }

  revokeSshSession({ token }: RevokeSshSessionRequest__Output): RevokeSshSessionResponse {
    return { revoked: this.parts.sshSessions.revoke(token) };
  }

  forwardTcp(call: ForwardCall): Promise<void> {
    return this.parts.sshSessions.forward(call, (id) => this.#byId(id));
  }

  // Watch and logs

  /** One snapshot, then what was asked for, until the caller leaves or the sandbox is gone. */
  async watchSandbox(
    call: grpc.ServerWritableStream<WatchSandboxRequest__Output, SandboxStreamEvent>,
  ): Promise<void> {
    const request = call.request;
    if (request.id === "") throw invalid("id is required");
    const { feeds, store } = this.parts;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const wanted = lineFilter({ sources: request.log_sources, minLevel: request.log_min_level });
    const since = Number(request.log_since_ms);
    const snapshot = (sandbox: Sandbox__Output) => {
      call.write({ sandbox });
      if (request.stop_on_terminal && phaseOf(sandbox) === "Ready") resolve();
    };
    const line = (log: SandboxLogLine__Output) => wanted(log) && call.write({ log });

    snapshot(this.#byId(request.id));
    if (request.follow_logs) {
      const lines = feeds.lastLines(request.id, request.log_tail_lines || DEFAULT_WATCH_LINES);
      lines.filter(({ timestamp_ms }) => Number(timestamp_ms) >= since).forEach(line);
    }
    if (request.follow_events) {
      for (const event of feeds.lastEvents(request.id, request.event_tail)) call.write({ event });
    }
    const follows = request.follow_status || request.follow_logs || request.follow_events;
    const unwatch = feeds.watch(request.id, {
      changed: () => {
        if (!request.follow_status) return;
        const sandbox = store.sandboxes.get(request.id);
        if (sandbox) snapshot(sandbox);
        else resolve();
      },
      event: (event) => request.follow_events && call.write({ event }),
      line: (log) => request.follow_logs && line(log),
      ended: () => follows && reject(new Status(grpc.status.CANCELLED, "stream closed")),
    });
    call.on("cancelled", () => resolve());
    try {
      await promise;
    } finally {
      unwatch();
    }
  }

  sandboxLogs(request: GetSandboxLogsRequest__Output): GetSandboxLogsResponse {
    if (request.sandbox_id === "") throw invalid("sandbox_id is required");
    this.#byId(request.sandbox_id);
    const kept = this.parts.feeds.lastLines(request.sandbox_id, request.lines || DEFAULT_LOG_LINES);
    const wanted = lineFilter({ sources: request.sources, minLevel: request.min_level });
    const since = Number(request.since_ms);
    const logs = kept.filter((line) => Number(line.timestamp_ms) >= since && wanted(line));
    return { logs, buffer_total: kept.length };
  }

  // Workspaces

  createWorkspace({ name, labels }: CreateWorkspaceRequest__Output): CreateWorkspaceResponse {
    validation.validateWorkspaceName(name);
    try {
      return { workspace: this.parts.store.workspaces.insert(newWorkspace(name, labels)) };
    } catch (error) {
      if (error instanceof NameTaken)
        throw new Status(grpc.status.ALREADY_EXISTS, "workspace already exists");
      throw error;
    }
  }

  getWorkspace({ name }: GetWorkspaceRequest__Output): GetWorkspaceResponse {
    if (name === "") throw invalid("name is required");
    const workspace = this.parts.store.workspaces.byName("", name);
    if (!workspace) throw notFound("workspace not found");
    return { workspace };
  }

  listWorkspaces(request: ListWorkspacesRequest__Output): ListWorkspacesResponse {
    validation.validateLabelSelector(request.label_selector);
    return { workspaces: this.parts.store.workspaces.list({ workspace: "", ...page(request) }) };
  }

  /** A workspace that still holds something is left terminating: it takes nothing new, and can be deleted later. */
  async deleteWorkspace({ name }: DeleteWorkspaceRequest__Output): Promise<DeleteWorkspaceResponse> {
    const { store, compute } = this.parts;
    if (name === "") throw invalid("name is required");
    if (name === "default") throw precondition("the default workspace cannot be deleted");
    const workspace = store.workspaces.byName("", name);
    if (!workspace) throw notFound(`workspace '${name}' not found`);
    const { id } = workspace.metadata!;
    if (workspace.metadata!.deletion_timestamp_ms === "0") {
      store.workspaces.update(id, (row) => {
        row.metadata!.deletion_timestamp_ms = String(Date.now());
        row.status = { phase: "WORKSPACE_PHASE_TERMINATING" };
      });
    }
    const sandboxes = store.sandboxes.list({ workspace: name, limit: MAX_PAGE, offset: 0 });
    const blocking = sandboxes.length ? ["sandbox"] : [];
    if (sandboxes.some(({ metadata }) => store.policies.latest(metadata!.id)))
      blocking.push("sandbox policy");
    if (blocking.length)
      throw precondition(`workspace '${name}' still contains resources: ${blocking.join(", ")}`);
    await compute.deleteWorkspace(name);
    return { deleted: store.workspaces.delete(id) };
  }

  // What requests name

  #address({ name, workspace }: Named): [workspace: string, name: string] {
    if (name === "") throw invalid("name is required");
    return [this.#workspace(workspace), name];
  }

  #workspace(name: string, must?: "active"): string {
    const found = this.parts.store.workspaces.byName("", name || "default");
    if (!found) throw notFound(`workspace '${name}' not found`);
    if (must === "active" && found.metadata!.deletion_timestamp_ms !== "0") {
      throw precondition(`workspace '${name}' is being deleted`);
    }
    return found.metadata!.name;
  }

  #byId(id: string): Sandbox__Output {
    const sandbox = this.parts.store.sandboxes.get(id);
    if (!sandbox) throw notFound("sandbox not found");
    return sandbox;
  }
}

const EMPTY_TEMPLATE: NonNullable<SandboxSpec__Output["template"]> = {
  image: "",
  runtime_class_name: "",
  agent_socket: "",
  labels: {},
  annotations: {},
  environment: {},
  resources: null,
  driver_config: null,
};

/** Every sandbox has a main process; without one of its own it is a login shell on a terminal. */
const withDefaultCommand = (spec: SandboxSpec__Output): SandboxSpec__Output =>
  spec.command.length ? spec : { ...spec, command: DEFAULT_COMMAND, tty: true };

const page = ({
  limit,
  offset,
  label_selector,
}: {
  limit: number;
  offset: number;
  label_selector: string;
}) => ({
  limit: limit === 0 ? DEFAULT_PAGE : Math.min(limit, MAX_PAGE),
  offset,
  selector: label_selector,
});

const LEVEL_RANKS = new Map([
  ["ERROR", 0],
  ["WARN", 1],
  ["INFO", 2],
  ["OCSF", 2],
  ["DEBUG", 3],
  ["TRACE", 4],
]);
const rank = (level: string) => LEVEL_RANKS.get(level.toUpperCase()) ?? 5;

/** Lines from the given sources (none given: all) of at least the given level (empty: all). */
function lineFilter({ sources, minLevel }: { sources: string[]; minLevel: string }) {
  return ({ source, level }: SandboxLogLine__Output): boolean =>
    (sources.length === 0 || sources.includes(source || "gateway")) &&
    (minLevel === "" || rank(level) <= rank(minLevel));
}
