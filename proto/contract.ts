// SPDX-License-Identifier: Apache-2.0

/**
 * The contract between gateway, driver and supervisor, loaded from the .proto files beside this one, and the two ways
 * to call it: `unary` and `streaming`. Harness and fakes both stand on this file.
 *
 * The message types come from the same files: `bun install` runs proto-loader-gen-types into `v0.0/types/`.
 * Conventions: field names as on the wire, 64-bit integers as decimal strings, enums by name, unset messages `null`.
 */
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import type { ProtoGrpcType as ComputeDriverPackage } from "./v0.0/types/compute_driver.ts";
import type { ProtoGrpcType as OpenShellPackage } from "./v0.0/types/openshell.ts";

function load<Package>(file: string): Package {
  const definition = loadSync(file, {
    includeDirs: [`${import.meta.dir}/v0.0`],
    keepCase: true,
    longs: String,
    enums: String,
    defaults: true,
    oneofs: true,
  });
  return grpc.loadPackageDefinition(definition) as Package;
}

/** The driver contract: `ComputeDriver` is the client's constructor, `ComputeDriver.service` what a server adds. */
export const computeDriver = (): ComputeDriverPackage["openshell"]["compute"]["v1"] =>
  (loaded.driver ??= load<ComputeDriverPackage>("compute_driver.proto")).openshell.compute.v1;

/** The gateway's public API: `OpenShell` is the client's constructor, `OpenShell.service` what a server adds. */
export const openshell = (): OpenShellPackage["openshell"]["v1"] =>
  (loaded.gateway ??= load<OpenShellPackage>("openshell.proto")).openshell.v1;

const loaded: { driver?: ComputeDriverPackage; gateway?: OpenShellPackage } = {};

/** How one call is made. `deadlineMs` is the time that the whole call may take, in milliseconds. */
export interface CallOptions {
  deadlineMs: number;
  metadata?: grpc.Metadata;
}

/** A unary method of a generated client, in the shortest of its overloads: the one TypeScript infers from. */
type UnaryMethod<Request, Response> = (
  request: Request,
  callback: grpc.requestCallback<Response>,
) => grpc.ClientUnaryCall;

/**
 * Calls a unary method and resolves with its response.
 * @throws grpc.ServiceError with `code`, and DEADLINE_EXCEEDED once `deadlineMs` have passed.
 */
export function unary<Request, Response>(
  client: grpc.Client,
  method: UnaryMethod<Request, Response>,
  request: Request,
  { deadlineMs, metadata = new grpc.Metadata() }: CallOptions,
): Promise<Response> {
  return new Promise((resolve, reject) => {
    const call = method as unknown as (...args: unknown[]) => void;
    const done: grpc.requestCallback<Response> = (error, response) =>
      error ? reject(error) : resolve(response as Response);
    call.call(client, request, metadata, { deadline: Date.now() + deadlineMs }, done);
  });
}

/** The items of a server stream. Leaving the loop cancels the call, which `for await` over a grpc-js stream does not. */
export async function* streaming<Item>(call: grpc.ClientReadableStream<Item>): AsyncGenerator<Item> {
  try {
    yield* call as AsyncIterable<Item>;
  } finally {
    // The cancel itself is reported as an error event, which would end the process if nobody listened.
    call.on("error", () => {});
    call.cancel();
  }
}

/** The name of a status code, such as "NOT_FOUND". */
export const codeName = (code: grpc.status): string => grpc.status[code] ?? `code ${code}`;
