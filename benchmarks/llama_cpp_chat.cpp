// llama.cpp's chat renderer, as `llama-server` uses it: one conversation for each line of standard input.
//
// In:  {"template", "bos", "eos", "messages", "tools", "add_generation_prompt", "variables"}
// Out: {"text"}, or {"error"} where llama.cpp refuses the conversation or its template.

#include "chat.h"
#include "json.h"
#include "log.h"

#include <iostream>
#include <map>
#include <string>

static common_json rendered(const common_json & request) {
    static std::map<std::string, common_chat_templates_ptr> known;
    const auto text = request.at("template").get<std::string>();
    const auto bos = request.at("bos").get<std::string>();
    const auto eos = request.at("eos").get<std::string>();
    auto & templates = known[text + bos + eos];
    if (!templates) {
        templates = common_chat_templates_init(nullptr, text, bos, eos);
    }
    common_chat_templates_inputs inputs;
    inputs.messages = common_chat_msgs_parse_oaicompat(request.at("messages"));
    inputs.tools = common_chat_tools_parse_oaicompat(request.at("tools"));
    inputs.add_generation_prompt = request.at("add_generation_prompt").get<bool>();
    for (const auto & [name, value] : request.at("variables").items()) {
        inputs.chat_template_kwargs[name] = value.dump();
    }
    return common_json{{"text", common_chat_templates_apply(templates.get(), inputs).prompt}};
}

int main() {
    common_log_pause(common_log_main());
    for (std::string line; std::getline(std::cin, line);) {
        common_json answer;
        try {
            answer = rendered(common_json::parse(line));
        } catch (const std::exception & error) {
            answer = common_json{{"error", error.what()}};
        }
        std::cout << answer.dump() << std::endl;
    }
}
