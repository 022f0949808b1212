// SPDX-License-Identifier: Apache-2.0

/** The public API: which methods there are, and who may call each. A method that is not here answers UNIMPLEMENTED. */
import type { EventEmitter } from "node:events";
import * as grpc from "@grpc/grpc-js";
import { openshell } from "../../proto/contract.ts";
import type { OpenShellHandlers } from "../../proto/v0.0/types/openshell/v1/OpenShell.ts";
import { denied, statusOf } from "../status.ts";
import type { Audience, Authenticator, Principal } from "./auth.ts";
import type { Caller } from "./compute.ts";
import type { Listener } from "./listeners.ts";
import type { SupervisorApi } from "./supervisor-api.ts";
import type { UserApi } from "./user-api.ts";

const MAX_REQUEST_BYTES = 1024 * 1024;

/** What the two kinds of call that a handler writes to have in common. */
type Answered = EventEmitter & { metadata: grpc.Metadata; end(): void };

export interface ApiParts {
  authenticator: Authenticator;
  users: UserApi;
  supervisors: SupervisorApi;
  /** Resolves when calls may be answered: the listeners open before that. */
  started: Promise<void>;
}

/** A server of all methods, which on a callback listener serves only those that sandboxes may call. */
export function apiServer(
  { authenticator, users, supervisors, started }: ApiParts,
  scope: Listener["scope"],
): grpc.Server {
  const admit = async (metadata: grpc.Metadata, audience: Audience): Promise<Principal> => {
    await started;
    if (scope === "callback" && audience !== "sandboxes" && audience !== "both") {
      throw denied("compute-driver callback listeners accept sandbox callback RPCs only");
    }
    return authenticator.admit(metadata, audience);
  };

  const unary =
    <Request, Response>(
      audience: Audience,
      handle: (request: Request, principal: Principal, caller: Caller) => Response | Promise<Response>,
    ): grpc.handleUnaryCall<Request, Response> =>
    (call, callback) =>
      void admit(call.metadata, audience)
        .then((principal) => handle(call.request, principal, call))
        .then(
          (response) => callback(null, response),
          (error: unknown) => callback(statusOf(error)),
        );

  /** For handlers that write to their caller: the stream ends when they do. */
  const stream =
    <Call extends Answered>(
      audience: Audience,
      handle: (call: Call, principal: Principal) => Promise<void>,
    ) =>
    (call: Call): void => {
      call.on("error", () => {}); // writing to a caller who has left
      void admit(call.metadata, audience)
        .then((principal) => handle(call, principal))
        .then(
          () => call.end(),
          (error: unknown) => call.emit("error", statusOf(error)),
        );
    };

  const handlers: OpenShellHandlers = {
    Health: unary("anyone", () => users.health()),

    GetGatewayInfo: unary("users", () => users.gatewayInfo()),
    CreateSandbox: unary("users", (request) => users.createSandbox(request)),
    GetSandbox: unary("users", (request) => users.getSandbox(request)),
    ListSandboxes: unary("users", (request) => users.listSandboxes(request)),
    StopSandbox: unary("users", (request, _, caller) => users.stopSandbox(request, caller)),
    StartSandbox: unary("users", (request, _, caller) => users.startSandbox(request, caller)),
    DeleteSandbox: unary("users", (request, _, caller) => users.deleteSandbox(request, caller)),
    ExecSandbox: stream("users", (call) => users.exec(call)),
    ExecSandboxInteractive: stream("users", (call) => users.execInteractive(call)),
    CreateSshSession: unary("users", (request) => users.createSshSession(request)),
    RevokeSshSession: unary("users", (request) => users.revokeSshSession(request)),
    ForwardTcp: stream("users", (call) => users.forwardTcp(call)),
    WatchSandbox: stream("users", (call) => users.watchSandbox(call)),
    GetSandboxLogs: unary("users", (request) => users.sandboxLogs(request)),
    CreateWorkspace: unary("users", (request) => users.createWorkspace(request)),
    GetWorkspace: unary("users", (request) => users.getWorkspace(request)),
    ListWorkspaces: unary("users", (request) => users.listWorkspaces(request)),
    DeleteWorkspace: unary("users", (request) => users.deleteWorkspace(request)),

    GetSandboxConfig: unary("both", (request, principal) => supervisors.config(request, principal)),
    UpdateConfig: unary("both", (request, principal) => supervisors.updateConfig(request, principal)),

    ConnectSupervisor: stream("sandboxes", (call, principal) => supervisors.connect(call, principal)),
    RelayStream: stream("sandboxes", (call, principal) => supervisors.relay(call, principal)),
    ReportMainProcessExit: unary("sandboxes", (request, principal) =>
      supervisors.mainProcessExited(request, principal),
    ),
    ReportPolicyStatus: unary("sandboxes", (request, principal) =>
      supervisors.policyStatus(request, principal),
    ),
    GetSandboxProviderEnvironment: unary("sandboxes", (request, principal) =>
      supervisors.providerEnvironment(request, principal),
    ),
    PushSandboxLogs: (call, callback) =>
      void admit(call.metadata, "sandboxes")
        .then((principal) => supervisors.pushLogs(call, principal))
        .then(
          (response) => callback(null, response),
          (error: unknown) => callback(statusOf(error)),
        ),
    RefreshSandboxToken: unary("sandboxes", (_, principal) => supervisors.refreshToken(principal)),
  };

  const server = new grpc.Server({ "grpc.max_receive_message_length": MAX_REQUEST_BYTES });
  server.addService(openshell().OpenShell.service, handlers);
  return server;
}
