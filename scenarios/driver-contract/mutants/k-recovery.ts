// SPDX-License-Identifier: Apache-2.0

/** Drivers that do not survive a restart. */
import { status } from "../../../proto/grpc.ts";
import type { Interceptors } from "../../../harness/runtime/faults/tap.ts";
import { mutant, refusal } from "../../../harness/conformance/mutant.ts";

/** A driver that keeps its sandboxes in its memory: those of before its start it does not know. */
function remembering() {
  const made = new Set<string>();
  const CreateSandbox: Interceptors["CreateSandbox"] = async (request, pass) => {
    const response = await pass();
    made.add(request.sandbox?.id ?? "");
    return response;
  };
  return { made, CreateSandbox };
}

mutant("Lists only what it created since it was started", ["DC-109"], () => {
  const { made, CreateSandbox } = remembering();
  return {
    CreateSandbox,
    ListSandboxes: async (_, pass) => ({
      sandboxes: (await pass()).sandboxes.filter(({ id }) => made.has(id)),
    }),
  };
});

mutant("Deletes only what it created since it was started", ["DC-109", "DC-157"], () => {
  const { made, CreateSandbox } = remembering();
  return {
    CreateSandbox,
    DeleteSandbox: (request, pass) =>
      made.has(request.sandbox_id) || !request.sandbox_id ? pass() : Promise.resolve({ deleted: false }),
  };
});

mutant("Says NOT_FOUND of a sandbox while its backend is gone", ["DC-97", "DC-111"], {
  GetSandbox: (_, pass) =>
    pass().catch((error: Refusal) => {
      throw error.code === status.INTERNAL ? refusal("NOT_FOUND") : error;
    }),
});

mutant("Lists nothing while its backend is gone", ["DC-111"], {
  ListSandboxes: (_, pass) => pass().catch(() => ({ sandboxes: [] })),
});

mutant("Does not find its backend again", ["DC-111"], () => {
  let lost: Refusal | undefined;
  return {
    ListSandboxes: (_, pass) => {
      if (lost) throw lost;
      return pass().catch((error: Refusal) => {
        throw (lost = error);
      });
    },
  };
});

type Refusal = Error & { code: status };
