# tests/fuzz/<layer>/fuzz_<x>.c is one parser of outside bytes, linked to that
# layer and to driver.c; its inputs are tests/fuzz/corpus/<x>/. Without a
# sanitizer it finds crashes only, so CI runs it under ASan and UBSan. With
# clang, `-fsanitize=fuzzer` in place of driver.c makes it a libFuzzer target.
set(GODWIT_FUZZ_MUTATIONS 2000 CACHE STRING "Mutations per fuzz target")

foreach(name IN LISTS GODWIT_LAYERS)
  file(GLOB fuzz_files CONFIGURE_DEPENDS tests/fuzz/${name}/fuzz_*.c)
  foreach(file IN LISTS fuzz_files)
    get_filename_component(stem ${file} NAME_WE)
    string(REPLACE "fuzz_" "" stem ${stem})
    add_executable(fuzz_${stem} ${file} tests/fuzz/driver.c)
    target_link_libraries(fuzz_${stem} PRIVATE ${name})
    target_compile_options(fuzz_${stem} PRIVATE -Wall -Wextra -Werror)
    add_test(NAME fuzz.${stem}
      COMMAND fuzz_${stem} tests/fuzz/corpus/${stem} ${GODWIT_FUZZ_MUTATIONS}
      WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    # UBSan reports and goes on; the report is the failure.
    set_tests_properties(fuzz.${stem} PROPERTIES LABELS fuzz TIMEOUT 1200
      FAIL_REGULAR_EXPRESSION "runtime error:")
  endforeach()
endforeach()
