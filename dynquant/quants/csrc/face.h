/* Shared by the files of the Python interface. */
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "codec.h"

static inline const struct codec *codec_at(int isa)
{
    if (isa >= 0 && isa < N_ISAS && codec_runs(isa))
        return codecs[isa];
    PyErr_SetString(PyExc_ValueError, "no such ISA on this CPU");
    return NULL;
}

/* Whether `length` bytes are exactly n items of `size` bytes. */
static inline int holds(Py_ssize_t length, int64_t n, int64_t size)
{
    return n >= 0 && length % size == 0 && length / size == n;
}

/* Whether numbers of four bytes may be read and written there. */
static inline int aligned(const Py_buffer *buffer) { return (uintptr_t)buffer->buf % 4 == 0; }

/* face_stored.c */
PyObject *face_decode_rows(PyObject *self, PyObject *args);
PyObject *face_decode_transposed(PyObject *self, PyObject *args);
PyObject *face_mxfp4_of_codes(PyObject *self, PyObject *args);

/* face_feedback.c */
PyObject *face_place_correlations(PyObject *self, PyObject *args);
PyObject *face_factor_tiles(PyObject *self, PyObject *args);
PyObject *face_place_schur(PyObject *self, PyObject *args);
PyObject *face_encode_with_feedback(PyObject *self, PyObject *args);
PyObject *face_output_errors(PyObject *self, PyObject *args);
