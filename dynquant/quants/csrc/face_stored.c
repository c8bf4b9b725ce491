/* The Python interface of stored.h. */
#include "face.h"

/* Whether a size is positive, and so small that no product of two of them and a byte count
 * overflows. */
static int sensible(int64_t n) { return n > 0 && n <= INT32_MAX; }

static int64_t row_bytes_of(enum number number, int bits, int64_t n_per_row)
{
    int width = number == NUMBER_FP4 ? 4 : number == NUMBER_BITS ? bits : 8;
    return (n_per_row * width + 7) / 8;
}

/* Whether every column's group is one of n. */
static int groups_fit(const Py_buffer *groups, int64_t n_per_row, int64_t n)
{
    const int32_t *group = groups->buf;
    if (!holds(groups->len, n_per_row, sizeof *group))
        return 0;
    for (int64_t c = 0; c < n_per_row; c++)
        if (group[c] < 0 || group[c] >= n)
            return 0;
    return 1;
}

/* decode_rows(isa, number, bits, codes, n_rows, n_per_row, first, block_rows, block_columns,
 * n_columns, scale, zero, zero_of_all, groups, weights): fill weights, a float32 buffer. */
PyObject *face_decode_rows(PyObject *self, PyObject *args)
{
    int isa, number, bits;
    long long n_rows, n_per_row, first, block_rows, block_columns, n_columns;
    float zero_of_all;
    Py_buffer codes, scale, zero = {0}, groups = {0}, weights;
    (void)self;
    if (!PyArg_ParseTuple(args, "iiiy*LLLLLLy*z*fz*w*", &isa, &number, &bits, &codes, &n_rows,
                          &n_per_row, &first, &block_rows, &block_columns, &n_columns, &scale,
                          &zero, &zero_of_all, &groups, &weights))
        return NULL;

    PyObject *result = NULL;
    const struct codec *codec = codec_at(isa);
    if (!codec)
        goto done;
    int fits = number >= 0 && number < N_NUMBERS && bits >= 1 && bits <= 8 && sensible(n_rows) &&
               sensible(n_per_row) && first >= 0 && first <= INT32_MAX && sensible(block_rows) &&
               sensible(block_columns) && sensible(n_columns);
    int64_t row_bytes = fits ? codes.len / n_rows : 0;
    fits = fits && codes.len % n_rows == 0 &&
           row_bytes >= row_bytes_of((enum number)number, bits, n_per_row) &&
           holds(weights.len, n_rows * n_per_row, sizeof(float)) &&
           scale.len / (int64_t)sizeof(float) / n_columns > (first + n_rows - 1) / block_rows &&
           aligned(&scale) && aligned(&zero) && aligned(&groups) && aligned(&weights) &&
           (!zero.buf || zero.len == scale.len) &&
           (groups.buf ? groups_fit(&groups, n_per_row, n_columns)
                       : (n_per_row - 1) / block_columns < n_columns);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "codes, scales and weights do not fit together");
        goto done;
    }
    struct scales scales = {scale.buf, zero.buf, zero_of_all, groups.buf,
                            first, block_rows, block_columns, n_columns};
    Py_BEGIN_ALLOW_THREADS
    codec->decode_rows((enum number)number, bits, codes.buf, row_bytes, n_rows, n_per_row, &scales,
                       weights.buf);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    PyBuffer_Release(&codes);
    PyBuffer_Release(&scale);
    if (zero.obj)
        PyBuffer_Release(&zero);
    if (groups.obj)
        PyBuffer_Release(&groups);
    PyBuffer_Release(&weights);
    return result;
}

/* decode_transposed(isa, packing, bits, words, width, first, n_rows, n_per_row, scale, zero,
 * groups, weights): fill weights, a float32 buffer; with the codes if scale is None. */
PyObject *face_decode_transposed(PyObject *self, PyObject *args)
{
    int isa, packing, bits;
    long long width, first, n_rows, n_per_row;
    Py_buffer words, scale = {0}, zero = {0}, groups = {0}, weights;
    (void)self;
    if (!PyArg_ParseTuple(args, "iiiy*LLLLz*z*z*w*", &isa, &packing, &bits, &words, &width, &first,
                          &n_rows, &n_per_row, &scale, &zero, &groups, &weights))
        return NULL;

    PyObject *result = NULL;
    const struct codec *codec = codec_at(isa);
    if (!codec)
        goto done;
    int fits = packing >= 0 && packing < N_PACKINGS && bits >= 1 && bits <= 8 && sensible(width) &&
               sensible(n_rows) && sensible(n_per_row) && first >= 0 && first <= width - n_rows &&
               (packing == PACKED_DOWN || (bits == 4 && width % 8 == 0));
    int64_t n_words = !fits                      ? 0
                      : packing == PACKED_ACROSS ? n_per_row * (width / 8)
                                                 : (n_per_row * bits + 31) / 32 * width;
    fits = fits && holds(words.len, n_words, 4) &&
           holds(weights.len, n_rows * n_per_row, sizeof(float)) && aligned(&weights) &&
           aligned(&scale) && aligned(&zero) && aligned(&groups);
    if (fits && scale.buf) {
        int64_t n_groups = scale.len / (width * (int64_t)sizeof(float));
        fits = holds(scale.len, n_groups * width, sizeof(float)) && zero.buf &&
               zero.len == scale.len && groups.buf && groups_fit(&groups, n_per_row, n_groups);
    }
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "words, scales and weights do not fit together");
        goto done;
    }
    struct scales scales = {scale.buf, zero.buf, 0, groups.buf, 0, 1, 1, width};
    Py_BEGIN_ALLOW_THREADS
    codec->decode_transposed((enum packing)packing, bits, words.buf, width, first, n_rows,
                             n_per_row, scale.buf ? &scales : NULL, weights.buf);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    PyBuffer_Release(&words);
    if (scale.obj)
        PyBuffer_Release(&scale);
    if (zero.obj)
        PyBuffer_Release(&zero);
    if (groups.obj)
        PyBuffer_Release(&groups);
    PyBuffer_Release(&weights);
    return result;
}

/* mxfp4_of_codes(isa, codes, scales, blocks): fill blocks. */
PyObject *face_mxfp4_of_codes(PyObject *self, PyObject *args)
{
    int isa;
    Py_buffer codes, scales, blocks;
    (void)self;
    if (!PyArg_ParseTuple(args, "iy*y*w*", &isa, &codes, &scales, &blocks))
        return NULL;

    PyObject *result = NULL;
    const struct codec *codec = codec_at(isa);
    if (!codec)
        goto done;
    if (!holds(codes.len, scales.len, 16) || !holds(blocks.len, scales.len, 17)) {
        PyErr_SetString(PyExc_ValueError, "codes, scales and blocks do not fit together");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    codec->mxfp4_of_codes(codes.buf, scales.buf, scales.len, blocks.buf);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    PyBuffer_Release(&codes);
    PyBuffer_Release(&scales);
    PyBuffer_Release(&blocks);
    return result;
}
