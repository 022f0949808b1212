// SPDX-License-Identifier: Apache-2.0

/** What supervisors call: their session and relays, their policy and settings, their reports and logs. */
import { createHash } from "node:crypto";
import * as grpc from "@grpc/grpc-js";
import type { GetSandboxConfigRequest__Output } from "../../proto/v0.0/types/openshell/sandbox/v1/GetSandboxConfigRequest.ts";
import type { GetSandboxConfigResponse } from "../../proto/v0.0/types/openshell/sandbox/v1/GetSandboxConfigResponse.ts";
import type { GatewayMessage } from "../../proto/v0.0/types/openshell/v1/GatewayMessage.ts";
import type { GetSandboxProviderEnvironmentRequest__Output } from "../../proto/v0.0/types/openshell/v1/GetSandboxProviderEnvironmentRequest.ts";
import type { GetSandboxProviderEnvironmentResponse } from "../../proto/v0.0/types/openshell/v1/GetSandboxProviderEnvironmentResponse.ts";
import type { PushSandboxLogsRequest__Output } from "../../proto/v0.0/types/openshell/v1/PushSandboxLogsRequest.ts";
import type { PushSandboxLogsResponse } from "../../proto/v0.0/types/openshell/v1/PushSandboxLogsResponse.ts";
import type { RefreshSandboxTokenResponse } from "../../proto/v0.0/types/openshell/v1/RefreshSandboxTokenResponse.ts";
import type { RelayFrame, RelayFrame__Output } from "../../proto/v0.0/types/openshell/v1/RelayFrame.ts";
import type { ReportMainProcessExitRequest__Output } from "../../proto/v0.0/types/openshell/v1/ReportMainProcessExitRequest.ts";
import type { ReportMainProcessExitResponse } from "../../proto/v0.0/types/openshell/v1/ReportMainProcessExitResponse.ts";
import type { ReportPolicyStatusRequest__Output } from "../../proto/v0.0/types/openshell/v1/ReportPolicyStatusRequest.ts";
import type { ReportPolicyStatusResponse } from "../../proto/v0.0/types/openshell/v1/ReportPolicyStatusResponse.ts";
import type { Sandbox__Output } from "../../proto/v0.0/types/openshell/v1/Sandbox.ts";
import type { SupervisorMessage__Output } from "../../proto/v0.0/types/openshell/v1/SupervisorMessage.ts";
import type { UpdateConfigRequest__Output } from "../../proto/v0.0/types/openshell/v1/UpdateConfigRequest.ts";
import type { UpdateConfigResponse } from "../../proto/v0.0/types/openshell/v1/UpdateConfigResponse.ts";
import { denied, invalid, notFound, Status, unavailable } from "../status.ts";
import { requireOwn, type Principal, type Tokens } from "./auth.ts";
import type { Compute } from "./compute.ts";
import type { Feeds } from "./feeds.ts";
import { items, type Sessions } from "./sessions.ts";
import type { PolicyRevision, Store } from "./store.ts";

const LOG_LINES_A_BATCH = 100;

export interface SupervisorApiParts {
  tokens: Tokens | undefined;
  store: Store;
  feeds: Feeds;
  sessions: Sessions;
  compute: Compute;
}

export class SupervisorApi {
  constructor(private readonly parts: SupervisorApiParts) {}

  // Session

  connect(
    call: grpc.ServerDuplexStream<SupervisorMessage__Output, GatewayMessage>,
    principal: Principal,
  ): Promise<void> {
    return this.parts.sessions.connect(call, principal);
  }

  relay(call: grpc.ServerDuplexStream<RelayFrame__Output, RelayFrame>, principal: Principal): Promise<void> {
    return this.parts.sessions.relay(call, principal);
  }

  mainProcessExited(
    request: ReportMainProcessExitRequest__Output,
    principal: Principal,
  ): ReportMainProcessExitResponse {
    if (request.sandbox_id === "") throw invalid("sandbox_id is required");
    if (request.instance_id === "") throw invalid("instance_id is required");
    requireOwn(principal, request.sandbox_id);
    this.parts.compute.mainProcessExited(request.sandbox_id, request.instance_id, request.exit_code);
    return {};
  }

  refreshToken(principal: Principal): RefreshSandboxTokenResponse {
    if (principal.kind !== "sandbox") throw denied("RefreshSandboxToken requires a sandbox principal");
    if (!this.parts.tokens) throw unavailable("sandbox JWT minting is not configured on this gateway");
    this.#sandbox(principal.id);
    const { token, expiresAtMs } = this.parts.tokens.mint(principal.id);
    return { token, expires_at_ms: expiresAtMs };
  }

  // Policy and settings

  config({ sandbox_id }: GetSandboxConfigRequest__Output, principal: Principal): GetSandboxConfigResponse {
    requireOwn(principal, sandbox_id);
    const { spec, metadata } = this.#sandbox(sandbox_id);
    const revision = this.#policy(sandbox_id, spec);
    return {
      policy: revision?.policy ?? null,
      version: revision?.version ?? 0,
      policy_hash: revision?.hash ?? "",
      settings: {},
      config_revision: configRevision(revision),
      policy_source: "POLICY_SOURCE_SANDBOX",
      workspace: metadata!.workspace,
      policy_validation_failure_mode: "fail_closed",
      extension_authentication_enabled: this.parts.tokens !== undefined,
    };
  }

  /** The policy in force; one that came with the create request becomes revision 1 when it is first asked for. */
  #policy(id: string, spec: Sandbox__Output["spec"]): PolicyRevision | undefined {
    const { policies } = this.parts.store;
    const latest = policies.latest(id);
    if (latest || !spec?.policy) return latest;
    const first = policies.add(id, spec.policy);
    policies.setStatus(id, first.version, "loaded");
    return first;
  }

  /** Stores a sandbox's policy. A supervisor does so when the sandbox has none, with the one that it found. */
  updateConfig(request: UpdateConfigRequest__Output, principal: Principal): UpdateConfigResponse {
    const { store, feeds } = this.parts;
    if (principal.kind === "sandbox") requirePolicySync(request);
    if (request.global || request.setting_key || request.delete_setting) {
      throw new Status(
        grpc.status.UNIMPLEMENTED,
        "this fake gateway stores policies of sandboxes, no settings",
      );
    }
    if (!request.policy) throw invalid("one of policy, setting_key, or merge_operations must be provided");
    if (request.name === "") throw invalid("name is required for sandbox-scoped updates");
    const workspace = request.workspace || "default";
    if (!store.workspaces.byName("", workspace)) throw notFound(`workspace '${workspace}' not found`);
    const sandbox = store.sandboxes.byName(workspace, request.name);
    if (principal.kind === "sandbox" && sandbox?.metadata!.id !== principal.id) {
      throw denied("sandbox not found or not owned by caller");
    }
    if (!sandbox) throw notFound("sandbox not found");
    const { id } = sandbox.metadata!;
    const { version, hash } = store.policies.add(id, request.policy);
    const updated = store.sandboxes.update(id, (row) => {
      row.spec!.policy ??= request.policy;
      Object.assign(row.metadata!.annotations, request.annotations);
    });
    feeds.changed(id);
    return { version, policy_hash: hash, annotations: updated!.metadata!.annotations };
  }

  policyStatus(request: ReportPolicyStatusRequest__Output, principal: Principal): ReportPolicyStatusResponse {
    const { sandbox_id: id, version, status } = request;
    const { store, feeds } = this.parts;
    requireOwn(principal, id);
    if (id === "") throw invalid("sandbox_id is required");
    if (version === 0) throw invalid("version is required");
    if (status !== "POLICY_STATUS_LOADED" && status !== "POLICY_STATUS_FAILED") {
      throw invalid("status must be LOADED or FAILED");
    }
    const loaded = status === "POLICY_STATUS_LOADED";
    if (!store.policies.setStatus(id, version, loaded ? "loaded" : "failed")) {
      throw notFound("policy revision not found");
    }
    if (loaded) {
      store.sandboxes.update(id, (sandbox) => {
        if (sandbox.status) sandbox.status.current_policy_version = version;
      });
      feeds.changed(id);
    }
    return {};
  }

  /** Without credential providers there is nothing to give. */
  providerEnvironment(
    { sandbox_id }: GetSandboxProviderEnvironmentRequest__Output,
    principal: Principal,
  ): GetSandboxProviderEnvironmentResponse {
    requireOwn(principal, sandbox_id);
    this.#sandbox(sandbox_id);
    return {};
  }

  // Logs

  async pushLogs(
    call: grpc.ServerReadableStream<PushSandboxLogsRequest__Output, PushSandboxLogsResponse>,
    principal: Principal,
  ): Promise<PushSandboxLogsResponse> {
    let validated: string | undefined;
    for await (const { sandbox_id: id, logs } of items(call)) {
      if (id === "") continue;
      if (validated === undefined) {
        requireOwn(principal, id);
        this.#sandbox(id);
        validated = id;
      }
      if (id !== validated) throw denied("log stream sandbox_id changed after validation");
      for (const line of logs.slice(0, LOG_LINES_A_BATCH)) {
        this.parts.feeds.line({ ...line, source: "sandbox", sandbox_id: id });
      }
    }
    return {};
  }

  #sandbox(id: string): Sandbox__Output {
    const sandbox = this.parts.store.sandboxes.get(id);
    if (!sandbox) throw notFound("sandbox not found");
    return sandbox;
  }
}

function requirePolicySync(request: UpdateConfigRequest__Output): void {
  if (request.global) throw denied("sandbox callers cannot mutate global config");
  if (request.delete_setting) throw denied("sandbox callers cannot delete settings");
  if (!request.name.trim() || !request.policy || request.setting_key.trim()) {
    throw denied("sandbox callers may only perform sandbox policy sync");
  }
}

/** A number that changes whenever the policy does. */
const configRevision = (revision: PolicyRevision | undefined): string =>
  createHash("sha256")
    .update(revision?.hash ?? "")
    .digest()
    .readBigUInt64BE()
    .toString();
