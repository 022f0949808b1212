// SPDX-License-Identifier: Apache-2.0

/** How a fake's gRPC call fails: a status with a code and a message. */
import type { status } from "@grpc/grpc-js";

/** gRPC's codes that are used here; grpc-js's own enum would have to be loaded before a bad flag is reported. */
const CODES = {
  INVALID_ARGUMENT: 3,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  ABORTED: 10,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  UNAUTHENTICATED: 16,
} satisfies Partial<Record<keyof typeof status, number>>;

/** An answer other than OK, to a gRPC caller. */
export class Status extends Error {
  constructor(
    readonly code: status,
    readonly details: string,
  ) {
    super(details);
  }
}

export const invalid = (details: string) => new Status(CODES.INVALID_ARGUMENT, details);
export const notFound = (details: string) => new Status(CODES.NOT_FOUND, details);
export const alreadyExists = (details: string) => new Status(CODES.ALREADY_EXISTS, details);
export const exhausted = (details: string) => new Status(CODES.RESOURCE_EXHAUSTED, details);
export const precondition = (details: string) => new Status(CODES.FAILED_PRECONDITION, details);
export const aborted = (details: string) => new Status(CODES.ABORTED, details);
export const denied = (details: string) => new Status(CODES.PERMISSION_DENIED, details);
export const unauthenticated = (details: string) => new Status(CODES.UNAUTHENTICATED, details);
export const unavailable = (details: string) => new Status(CODES.UNAVAILABLE, details);
export const internal = (details: string) => new Status(CODES.INTERNAL, details);

/** The status in what a handler or a gRPC client threw; anything unforeseen becomes INTERNAL. */
export function statusOf(error: unknown): Status {
  if (error instanceof Status) return error;
  const { code, details, message } = error as { code?: unknown; details?: string; message?: string };
  return new Status(typeof code === "number" ? code : CODES.INTERNAL, details ?? message ?? String(error));
}
