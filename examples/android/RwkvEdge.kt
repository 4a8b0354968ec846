// SPDX-License-Identifier: Apache-2.0
// A sketch, neither compiled nor run: chatting in an app, with rwkv_edge_jni.c beside librwkv_edge.so.
package org.rwkvedge

import android.content.res.AssetFileDescriptor

/** A model and one conversation with it. The asset is stored uncompressed (aaptOptions noCompress). */
class RwkvEdge(asset: AssetFileDescriptor) : AutoCloseable {
    private var session: Long =
        asset.parcelFileDescriptor.use { open(it.fd, asset.startOffset, asset.length) }

    /** Hands the answer to [piece] as it comes, in the caller's thread; `false` ends it. */
    fun chat(text: String, seed: Long, piece: (String) -> Boolean) =
        chat(session, text.toByteArray() + 0, seed, Piece { piece(it.decodeToString()) })

    override fun close() {
        free(session)
        session = 0
    }

    private fun interface Piece { fun take(utf8: ByteArray): Boolean }

    private external fun open(fd: Int, offset: Long, length: Long): Long
    private external fun chat(session: Long, text: ByteArray, seed: Long, piece: Piece)
    private external fun free(session: Long)

    companion object { init { System.loadLibrary("rwkv_edge_jni") } }
}
