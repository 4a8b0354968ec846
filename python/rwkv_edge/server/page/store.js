// SPDX-License-Identifier: Apache-2.0
// Conversations in this browser: texts and the names of states. The states are on the server.

let opened;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("rwkv-edge", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function within(mode, work) {
  const transaction = (await database()).transaction("conversations", mode);
  const request = work(transaction.objectStore("conversations"));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

export const load = () => within("readonly", (store) => store.getAll());
export const one = (id) => within("readonly", (store) => store.get(id));
export const save = (conversation) => within("readwrite", (store) => store.put(conversation));
export const remove = (id) => within("readwrite", (store) => store.delete(id));
